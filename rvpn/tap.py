"""
What twistd runs: `twistd rvpn-client --policy FILE` and `twistd rvpn-gateway --policy FILE`.

`makeService` takes from the host what the role needs, so that whatever is missing is said on the terminal,
with exit code 1, before twistd leaves it: in one line, or one for each fault of the policy.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from twisted.application.service import IService, MultiService
from twisted.python import usage

from rvpn import __version__
from rvpn.errors import LocalError
from rvpn.net.reactor import installed
from rvpn.service.client import ClientService
from rvpn.service.gateway import GatewayService
from rvpn.service.jsonlog import JSONLog
from rvpn.service.process import Process
from rvpn.service.tunnel import TunnelService

reactor = installed()


class Options(usage.Options):
    """Arguments of either role."""

    synopsis = "--policy FILE [--json-log FILE]"
    longdesc = (
        "docs/operations.md tells how to run it; rvpn policy check FILE tells what is wrong with a policy."
    )
    optParameters: ClassVar = [
        ["policy", "p", None, "The policy file (required)."],
        [
            "json-log",
            None,
            None,
            "Also append the log to this file, one JSON object per line; - is standard output.",
        ],
    ]

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Raise SystemExit with one line about wrong arguments, where Twisted would print the whole usage."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            name = f"twistd {self.parent.subCommand}" if self.parent else "twistd"
            raise SystemExit(f"{name}: {error}; {name} --help tells more") from None

    def parseArgs(self, *arguments: str) -> None:
        """Refuse what is no option."""
        if arguments:
            raise usage.UsageError(f"found {arguments[0]}, expected --policy FILE")

    def postOptions(self) -> None:
        """Refuse to start without a policy."""
        if not self["policy"]:
            raise usage.UsageError("expected --policy FILE")

    def opt_version(self) -> None:
        """Display the version of rvpn and exit."""
        print(f"rvpn {__version__}")  # noqa: T201
        raise SystemExit


class Role:
    """What `twisted/plugins/rvpn_plugins.py` names: options, and a service made of them."""

    Options: ClassVar[type[usage.Options]] = Options

    def __init__(self, service: Callable[[str, Any], TunnelService[Any]]) -> None:
        self._service = service

    def makeService(self, options: usage.Options) -> IService:
        """Return the service, opened. Raises SystemExit with what is wrong, if it cannot be."""
        node = self._service(options["policy"], reactor)
        services = [node, Process(node, reactor)]
        try:
            if options["json-log"]:
                services.insert(0, JSONLog(options["json-log"]))
            node.open()
        except (LocalError, OSError) as error:
            lines = str(error).splitlines()
            raise SystemExit("\n".join(f"rvpn {node.role.value}: {line}" for line in lines)) from None
        made = MultiService()
        for service in services:
            service.setServiceParent(made)
        whole: IService = made
        return whole


client = Role(ClientService)
gateway = Role(GatewayService)
