"""
ESP in tunnel mode inside UDP (RFC 4303, RFC 3948, DESIGN 3).

`sa` seals and opens packets; it stands on `codec` (the layout), `transforms` (the ciphers) and `replay` (the
anti-replay window).
"""
