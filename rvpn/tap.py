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

from twisted.application.service import IService, MultiService, Service
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
        """Return the service, opened. Raises SystemExit with what is wrong, if it cannot be."""
        opened = self._service(options["policy"], reactor)
        made = MultiService()
        try:
            if options["json-log"]:
                JSONLog(options["json-log"]).setServiceParent(made)
            opened.open()
        except LocalError as error:
            raise SystemExit(f"rvpn {opened.role.value}: {error}") from None
        opened.setServiceParent(made)
        service: IService = made
        return service


@implementer(ILogObserver)
class JSONLog(Service):
    """Appends each log event to a file as a JSON object. Raises `LocalError` if it cannot be opened."""

    def __init__(self, file: str) -> None:
        try:
            self._out = sys.stdout if file == "-" else Path(file).open("a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise LocalError(f"{file}: cannot open the log: {error.strerror}") from None

    def startService(self) -> None:
        """Begin to observe; before, twistd keeps events and would repeat them."""
        super().startService()
        globalLogPublisher.addObserver(self)

    def __call__(self, event: LogEvent) -> None:
        """Write one event (`ILogObserver`)."""
        self._out.write(json.dumps(_plain(event), separators=(",", ":")) + "\n")
        self._out.flush()


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
