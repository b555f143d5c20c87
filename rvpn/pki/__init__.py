"""
A small certificate authority for those who have none: what `rvpn pki` and `rvpn enroll` do.

`names` reads what a certificate is to say, `certificates` makes certificates and revocation lists, `keys`
their secret keys, `index` remembers what was issued, `authority` keeps all of that in one directory.
`description` tells what is in a certificate, whoever issued it. `enrolment` makes one policy file with
everything in it that a client needs.

The services need nothing of this: they read certificates, as any authority issues them.
"""
