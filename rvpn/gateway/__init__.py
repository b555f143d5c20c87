"""
A gateway as a calculation: `node` puts the machines of the other packages together.

`clients` are those that the policy knows, `admission` says who gets a session, with which addresses, and
`refusals` what the log says of the others. `calls` asks a client for keys, `roaming` follows it to another
endpoint, `control` takes what it says. On the LAN, `presence` claims its addresses in the frames of
`address_resolution`, and `lanwatch` sees whether the LAN is there.
"""
