"""
The files of this machine that rvpn reads and writes, and the errors that a person can mend.

`regular` opens what is there and `newfile` makes what is not yet. `policyfile`, `keyfile` and
`certificatefiles` read what a node is configured by; `state` is the directory in which it keeps what has to
outlive it.
"""
