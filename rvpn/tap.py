"""
What twistd runs: `twistd rvpn-client --policy FILE` and `twistd rvpn-gateway --policy FILE`.

`makeService` takes from the host what the role needs, so that whatever is missing is said in one line on the
terminal, with exit code 1, before twistd leaves it.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from twisted.application.service import IService
from twisted.internet import reactor
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python import usage
from zope.interface import implementer

from rvpn.errors import LocalError
from rvpn.service.client import ClientService
from rvpn.service.gateway import GatewayService
from rvpn.service.tunnel import TunnelService


class Options(usage.Options):
    """Arguments of either role."""

    optParameters: ClassVar = [
        ["policy", "p", None, "The policy file (required)."],
        [
            "json-log",
            None,
            None,
            "Also append the log to this file, one JSON object per line; - is standard output.",
        ],
    ]

    def postOptions(self) -> None:
        """Refuse to start without a policy."""
        if not self["policy"]:
            raise usage.UsageError("expected --policy FILE")


class Role:
    """What `twisted/plugins/rvpn_plugins.py` names: options, and a service made of them."""

    Options: ClassVar[type[usage.Options]] = Options

    def __init__(self, service: Callable[[str, Any], TunnelService[Any]]) -> None:
        self._service = service

    def makeService(self, options: usage.Options) -> IService:
        """
        Return the service, opened. Raises SystemExit with one line, or the policy's errors, if it cannot be.
        """
        service = self._service(options["policy"], reactor)
        try:
            if options["json-log"]:
                globalLogPublisher.addObserver(json_log(options["json-log"]))
            service.open()
        except LocalError as error:
            raise SystemExit(f"rvpn {service.role.value}: {error}") from None
        made: IService = service
        return made


def json_log(file: str) -> ILogObserver:
    """Return an observer that appends to `file`. Raises `LocalError` if it cannot be opened."""
    try:
        out = sys.stdout if file == "-" else Path(file).open("a", encoding="utf-8")  # noqa: SIM115  # for good
    except OSError as error:
        raise LocalError(f"{file}: cannot open the log: {error.strerror}") from None

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        out.write(json.dumps(_plain(event), separators=(",", ":")) + "\n")
        out.flush()

    observer: ILogObserver = observe
    return observer


def _plain(event: LogEvent) -> dict[str, Any]:
    """
    Keep of an event what a program can use: time, level, origin, text, and the fields that are plain values.
    """
    fields = {
        name: value
        for name, value in event.items()
        if not name.startswith("log_") and isinstance(value, str | int | float | bool)
    }
    level = event.get("log_level")
    return {
        "time": event.get("log_time"),
        "level": level.name if level is not None else "info",
        "origin": event.get("log_namespace"),
        "text": formatEvent(event),
        **{name: value for name, value in fields.items() if name not in {"time", "level", "origin", "text"}},
    }


client = Role(ClientService)
gateway = Role(GatewayService)
