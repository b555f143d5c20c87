"""
The way to another gateway (R1 to R9, X1 to X4): all of it happens at a client.

`liveness` watches the gateways in use, each by a `heartbeat` detector with the times of `round_trip`. When
one has failed, `failover` gives each `cluster` that used it its successor, or has `kms` ask the next gateway
for keys. `seeking` looks for a better one than that in use. `journal` keeps what happened.
"""
