"""
What a client and a gateway that authenticated to each other have in common (DESIGN 4 and 5).

`sessions` is the session cache with the SAs of each session. Its ends speak to each other by control packets:
`session_control` is their layout, `control` takes and answers them, `retransmission` repeats what is to be
acknowledged. `literal_heartbeats` are those of the patent's syntax, `lost_keys` proves that a gateway knows a
session no more, `validity` ends one by the policy or a certificate, and `status` is what people see of it.
"""
