"""
A laboratory in network namespaces: the patent's Fig. 2 with real services, faults, impairments and captures.

`topology` says what there is, `network` builds it, `holder` keeps it alive and starts processes in it, `lab`
is the way in for tests and for `rvpn lab`.
"""
