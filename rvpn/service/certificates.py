"""
Certificates while a service runs: their files change, and this node's own one comes to its end.

    every FILES_INTERVAL -> files have changed -> `changed`: the service reads all of them again
                         -> once a day, and at the end -> the log tells that the own certificate, or a
                            list, is at its end
"""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from time import gmtime, strftime, time
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from rvpn.errors import LocalError
from rvpn.interfaces import RevocationState
from rvpn.keyexchange.credentials import Authenticator

#: Seconds between looks at the files.
FILES_INTERVAL = 2.0
#: Seconds before its end from which on a certificate is worth a warning, and between two warnings.
SOON, AGAIN = 14 * 86400.0, 86400.0

_State = dict[Path, tuple[int, int, int] | None]
#: Hears which files have changed since they were last taken; returns whether they are taken now.
Changed = Callable[[Collection[Path]], bool]


class CertificateWatch:
    """
    See the module.

    `files` returns the files and `own` what was read of them, as the policy in force has it. A file that is
    written in place may be seen half written; it changes once more then.
    """

    _log = Logger()

    def __init__(
        self,
        files: Callable[[], Iterable[Path]],
        own: Callable[[], Authenticator | None],
        changed: Changed,
        reactor: Any,
    ) -> None:
        self._files, self._own, self._changed = files, own, changed
        self._seen = self._state()
        self._not_taken: set[Path] = set()
        self._told_at = 0.0
        self._loop = LoopingCall(self._look)
        self._loop.clock = reactor
        self._loop.start(FILES_INTERVAL)

    def close(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def _look(self) -> None:
        state = self._state()
        if state != self._seen:
            self._not_taken.update(path for path, now in state.items() if now != self._seen.get(path, ()))
            self._seen, self._told_at = state, 0.0
            if self._not_taken and self._changed(self._not_taken):
                self._not_taken.clear()
        own, now = self._own(), time()
        if own is not None and (now >= self._told_at + AGAIN or self._has_ended(own, now)):
            self._told_at = now
            self._warn(own, now)

    def _has_ended(self, own: Authenticator, now: float) -> bool:
        """Tell whether something came to its end since the last warning."""
        return any(self._told_at <= end < now for end in own.ends.values())

    def _state(self) -> _State:
        return {path: _stat(path) for path in self._files()}

    def _warn(self, own: Authenticator, now: float) -> None:
        for what, end in own.ends.items():
            if end < now:
                self._log.error("{what} expired on {day}", what=what, day=day(end))
            elif end < now + SOON:
                self._log.warn("{what} expires on {day}", what=what, day=day(end))


def check_lists(before: Authenticator | None, after: Authenticator | None) -> None:
    """
    Raise `LocalError` if an authority's revocation list, just read, is older than that in force, or missing.

    Only a restart goes back: an older list would let those in again that are revoked.
    """
    known = before.lists if before is not None else {}
    for authority, new in (after.lists if after is not None else {}).items():
        old = known.get(authority)
        if old is not None and _is_older(new, old):
            raise LocalError(f"found {in_words(new)}, expected {in_words(old)}, or a newer list")


def _is_older(new: RevocationState, old: RevocationState) -> bool:
    if old.made_at is None or new.made_at is None:
        return old.made_at is not None
    if new.number is not None and old.number is not None:
        return new.number < old.number
    return new.made_at < old.made_at


def named(files: Iterable[Path], place: Path) -> str:
    """Name files as a policy in directory `place` does."""
    return ", ".join(
        sorted(str(file.relative_to(place) if file.is_relative_to(place) else file) for file in files)
    )


def in_words(state: RevocationState) -> str:
    """Say what an authority has revoked."""
    of = ascii(state.authority)
    if state.made_at is None:
        return f"no revocation list of authority {of}"
    number = f" {state.number}" if state.number is not None else ""
    until = f", until {day(state.ends_at)}" if state.ends_at is not None else ""
    return f"list{number} of authority {of} of {day(state.made_at)}{until}: {state.revoked} revoked"


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def day(seconds: float) -> str:
    """Write a time in seconds since 1970."""
    return strftime("%Y-%m-%d %H:%M:%S UTC", gmtime(seconds))
