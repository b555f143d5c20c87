"""
Changes to the host that outlive the process that made them, each with its way back.

A change is a frozen value. `apply` makes it, `undo` takes it back, both again and again without harm.
`encode` and `decode` carry changes through the journal in which `rvpn.net.host` notes them first. A journal
is bound to the boot and the network namespace that it was written in: elsewhere its changes do not exist.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rvpn.errors import LocalError
from rvpn.net.netlink import Netlink, Route, Rule

PROC_SYS = Path("/proc/sys")


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel parameter: its path below /proc/sys, the value it had and the value it gets."""

    path: str
    before: str
    value: str

    def __str__(self) -> str:
        """Name it as the files do."""
        return f"{self.path} = {self.value}"


Change = Sysctl | Rule | Route
_KINDS: dict[str, type[Change]] = {kind.__name__: kind for kind in (Sysctl, Rule, Route)}


def read_sysctl(path: str) -> str | None:
    """Return the value of a kernel parameter, None if the kernel has no such one."""
    try:
        return (PROC_SYS / path).read_text().strip()
    except FileNotFoundError:
        return None


def write_sysctl(path: str, value: str) -> None:
    """Set a kernel parameter. Raises `LocalError` if the kernel refuses."""
    try:
        (PROC_SYS / path).write_text(value)
    except OSError as error:
        raise LocalError(f"cannot set {path} to {value}: {error.strerror}") from error


def apply(change: Change, netlink: Netlink) -> None:
    """Make the change. Raises `LocalError` if the kernel refuses."""
    match change:
        case Sysctl():
            write_sysctl(change.path, change.value)
        case Rule():
            netlink.add_rule(change)
        case Route():
            netlink.add_route(change)


def undo(change: Change, netlink: Netlink) -> None:
    """Take the change back, if it is there. Raises `LocalError` if the kernel refuses."""
    match change:
        case Sysctl():
            if read_sysctl(change.path) is not None:  # else its interface has gone, and the parameter with it
                write_sysctl(change.path, change.before)
        case Rule():
            netlink.remove_rule(change)
        case Route():
            netlink.remove_route(change)


def encode(changes: Iterable[Change]) -> bytes:
    """Write changes as a journal."""
    listed = [{type(change).__name__: asdict(change)} for change in changes]
    return json.dumps({"scope": _scope(), "changes": listed}, indent=1).encode()


def decode(journal: bytes) -> list[Change]:
    """
    Read a journal, oldest change first; nothing if it was written before a reboot or in another namespace.

    Raises `ValueError` if `encode` did not write it.
    """
    try:
        content = json.loads(journal)
        if content["scope"] != _scope():
            return []
        return [_KINDS[kind](**fields) for entry in content["changes"] for kind, fields in entry.items()]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a journal: {error}") from error


def _scope() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/net').stat().st_ino}"
