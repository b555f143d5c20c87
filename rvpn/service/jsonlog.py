"""The log as one JSON object per line, for programs: `--json-log FILE` of either role."""

import json
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.logger import ILogObserver, LogEvent, Logger, formatEvent, globalLogPublisher
from zope.interface import implementer

from rvpn.errors import LocalError

#: What Twisted's older log calls add to an event, of no use to a reader.
_LEGACY = {"system", "isError", "format"}
_STDOUT = 1

_log = Logger()


@implementer(ILogObserver)
class JSONLog(Service):
    """
    Appends each log event to a file as a JSON object. Raises `LocalError` if it cannot be opened.

    What cannot be written is lost here, and twistd's own log says so when that begins.
    """

    def __init__(self, file: str) -> None:
        try:
            where = _STDOUT if file == "-" else Path(file)
            self._out = open(where, "ab", buffering=0, closefd=file != "-")  # noqa: SIM115
        except OSError as error:
            raise LocalError(f"{file}: cannot open the log: {error.strerror}") from None
        self._file, self._failing = file, False

    def startService(self) -> None:
        """Begin to observe; before, twistd keeps events and would repeat them."""
        super().startService()
        globalLogPublisher.addObserver(self)

    def __call__(self, event: LogEvent) -> None:
        """Write one event (`ILogObserver`)."""
        line = json.dumps(plain(event), separators=(",", ":")) + "\n"
        try:
            self._out.write(line.encode())
        except OSError as error:
            before, self._failing = self._failing, True
            if not before:
                _log.error("{file}: the log is incomplete: {error}", file=self._file, error=error.strerror)
        else:
            self._failing = False


def plain(event: LogEvent) -> dict[str, Any]:
    """
    Keep of an event what a program can use: time, level, origin, text, the fields that are plain values, and
    the traceback of a failure.
    """
    level, failure = event.get("log_level"), event.get("log_failure")
    line = {
        "time": event.get("log_time"),
        "level": level.name if level is not None else "info",
        "origin": event.get("log_namespace"),
        "text": formatEvent(event),
    }
    if failure is not None:
        line["traceback"] = failure.getTraceback()
    for name, value in event.items():
        if not (name.startswith("log_") or name in _LEGACY) and isinstance(value, str | int | float | bool):
            line.setdefault(name, value)
    return line
