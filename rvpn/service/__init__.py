"""
The nodes at work under twistd, which starts them by `rvpn.tap`.

`tunnel` holds what both roles do: start, packets, commands, end; `client` and `gateway` prepare the host for
their role. `configuration` reads what they run with, `protocols` takes datagrams apart, `control` answers
`rvpn status` and `rvpn reload`, `process` takes signals, `jsonlog` writes the log for programs.
"""
