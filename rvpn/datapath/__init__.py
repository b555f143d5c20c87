"""
The data path: inner packets to datagrams and back (DESIGN 3).

Out, `sealing` takes packets from the TUN device, has `offload` and `trains` do what the kernel left undone,
and seals them under the session's SA. In, `ipfilter` opens datagrams, and `coalesce` and `joining` put
together again what was cut. `packet` reads the inner headers, `waiting` keeps packets that have no session
yet, `path_mtu` says how long they may be.
"""
