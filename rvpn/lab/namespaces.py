"""
Network namespaces by system call; Python has these calls from 3.12 on, and we support 3.11.

A namespace lives as long as somebody holds its descriptor, so nothing needs to be mounted or named. Only for
a process with one thread: `inside` moves the calling thread.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

#: <linux/sched.h>
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _own_network() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def new_network() -> int:
    """Make a network namespace and return a descriptor that keeps it alive. Raises OSError."""
    home = _own_network()
    try:
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        try:
            return _own_network()
        finally:
            _check(_libc.setns(home, CLONE_NEWNET), "setns")
    finally:
        os.close(home)


@contextmanager
def inside(network: int) -> Iterator[None]:
    """
    Run the body in the network namespace of that descriptor: its sockets, children and sysctls are there.
    """
    home = _own_network()
    try:
        _check(_libc.setns(network, CLONE_NEWNET), "setns")
        try:
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWNET), "setns")
    finally:
        os.close(home)


def mount_tmpfs(path: str) -> None:
    """Mount an empty file system on `path`. Raises OSError."""
    _check(_libc.mount(b"tmpfs", path.encode(), b"tmpfs", 0, b"mode=755"), f"mount a tmpfs on {path}")
