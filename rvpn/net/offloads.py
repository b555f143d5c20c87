"""
Which work the kernel and we do for each other in one call for many packets, and which not and why.

Every offload is asked for at the start; `rvpn status` shows the answers in these words.
"""

import errno

#: Offload -> `IN_USE`, or why it is not.
Offloads = dict[str, str]

IN_USE = "in use"
OFF = "off by the policy"


def refused_by_kernel(error: OSError) -> str:
    """Return the reason why the kernel does not do it."""
    return f"refused by the kernel: {error.strerror}"


def name_of(failure: int) -> str:
    """Return the name of an errno, for counters."""
    return errno.errorcode.get(failure, str(failure))
