"""
What an authority has issued: a line of comma-separated values for each certificate, for people and programs.

    bytes -> `read` -> entries -> `write` -> bytes

The index is the one record of revocations; the revocation list is made from it.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO

from rvpn.constants import Role
from rvpn.errors import LocalError

_COLUMNS = ("serial", "role", "name", "alternatives", "issued", "expires", "revoked")


@dataclass(frozen=True, slots=True)
class Entry:
    """One certificate; `alternatives` are its subject alternative names. Times are in UTC."""

    serial: int
    role: Role
    name: str
    alternatives: tuple[str, ...]
    issued: datetime
    expires: datetime
    revoked: datetime | None = None

    def is_live(self, now: datetime) -> bool:
        """Return whether the certificate is neither revoked nor expired."""
        return self.revoked is None and now <= self.expires


def serial_text(serial: int) -> str:
    """Write a serial number as OpenSSL does: hexadecimal, an even number of digits."""
    digits = f"{serial:X}"
    return digits.zfill(len(digits) + len(digits) % 2)


def write(entries: Iterable[Entry]) -> bytes:
    """Return the file that holds `entries`."""
    text = StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_COLUMNS)
    for entry in entries:
        lines.writerow(
            (
                serial_text(entry.serial),
                entry.role.value,
                entry.name,
                " ".join(entry.alternatives),
                _time_text(entry.issued),
                _time_text(entry.expires),
                _time_text(entry.revoked) if entry.revoked else "",
            )
        )
    return text.getvalue().encode()


def read(data: bytes, path: str) -> list[Entry]:
    """Return the entries of a file. Raises `LocalError`, which names `path` and line, if it holds others."""
    lines = csv.reader(StringIO(data.decode(errors="replace")), strict=True)
    try:
        if tuple(next(lines, ())) != _COLUMNS:
            raise ValueError
        return [_entry(*line) for line in lines]
    except (ValueError, TypeError, csv.Error):
        raise LocalError(f"{path}:{lines.line_num}: found something that is no line of an index") from None


def _entry(
    serial: str, role: str, name: str, alternatives: str, issued: str, expires: str, revoked: str
) -> Entry:
    return Entry(
        int(serial, 16),
        Role(role),
        name,
        tuple(alternatives.split()),
        _time(issued),
        _time(expires),
        _time(revoked) if revoked else None,
    )


def _time_text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
