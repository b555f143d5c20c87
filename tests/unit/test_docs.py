"""The documentation tells the truth where a test can know it."""

import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn import __version__
from rvpn.cli import report
from rvpn.errors import DropReason
from rvpn.failover.journal import Change
from rvpn.keyexchange import parameters
from rvpn.policy import Severity, check
from rvpn.service.client import ClientService, for_gateways
from rvpn.service.gateway import GatewayService
from rvpn.session.lost_keys import NOTICE_SIZE
from rvpn.session.session_control import CONTROL_SIZE, Kind, Status
from tests.unit.commands import rvpn
from tests.unit.simulation import INNER, TARGET, Network, udp_packet

ROOT = Path(__file__).resolve().parents[2]
#: What the service adds to the status of its node (rvpn.service.tunnel).
OF_THE_SERVICE = {
    "version": __version__,
    "uptime": 1.0,
    "device": "rvpn0",
    "mtu": 1434,
    "certificate": None,
    "offloads": {},
    "refusals": {},
}


def read(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    """Return what stands under a heading of a page, up to the next one."""
    return re.split(r"^##+ ", read(page).split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str, title: str) -> list[list[str]]:
    """Return the cells of the table whose first column is called `title`, row by row."""
    rows = re.split(rf"^\| {re.escape(title)} \|.*\n\|[-|]*\n", text, maxsplit=1, flags=re.MULTILINE)[1]
    lines = rows.split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def named(text: str) -> set[str]:
    """Return the names in the first column of a table of fields."""
    return {name for row in table(text, "field") for name in re.findall(r"\w+", row[0])}


class OperationsTests(SynchronousTestCase):
    """docs/operations.md tells what a node counts, shows and takes."""

    page = "docs/operations.md"

    def test_drop_reasons(self) -> None:
        """The table of dropped packets has every reason, in the order of `DropReason`."""
        reasons = [row[0].strip("`") for row in table(section(self.page, "Dropped packets"), "reason")]
        self.assertEqual(reasons, [reason.value for reason in DropReason])

    def test_status(self) -> None:
        """The tables name exactly the fields that client and gateway give; `rvpn status` knows both."""
        network = Network()
        network.send(network.client, udp_packet(INNER, TARGET, b"hello"))
        network.run(1)
        statuses: list[dict[str, Any]] = [
            {**OF_THE_SERVICE, **host.node.status(network.now)} for host in network.hosts
        ]
        sessions = [session for status in statuses for session in status["sessions"]]
        self.assertEqual(len(sessions), 2)
        self.assertEqual(named(section(self.page, "Status")), set().union(*statuses))
        self.assertEqual(named(section(self.page, "Sessions")), set().union(*sessions))
        client = network.client.node.status(network.now)
        self.assertEqual(named(section(self.page, "How soon")), set(client["promise"]))
        for status in statuses:
            self.assertIn(str(INNER), report.text(status))

    def test_journal(self) -> None:
        """The table of the journal names exactly the fields of an entry."""
        self.assertEqual(
            named(section(self.page, "The failover journal")), {field.name for field in fields(Change)}
        )

    def test_commands(self) -> None:
        """The table of commands has exactly those that the control sockets take, and whose they are."""
        commands = ClientService("client.policy", None)._commands
        client = {name for name, command in commands.items() if command is not for_gateways}
        gateway = set(GatewayService("gateway.policy", None)._commands)
        whose = {command: "both" if command in client else "gateway" for command in client | gateway}
        rows = table(section(self.page, "Commands"), "command")
        self.assertEqual({row[0].strip("`"): row[1] for row in rows}, whose)
        self.assertLess(client, gateway)


class ProtocolTests(SynchronousTestCase):
    """docs/protocol.md has the numbers and sizes of the codecs."""

    page = "docs/protocol.md"

    def test_session_control(self) -> None:
        """The tables have every kind by its number, and every status."""
        text = section(self.page, "Session control")
        kinds = {int(row[1]): row[0].rstrip("?") for row in table(text, "kind")}
        self.assertEqual(kinds, {kind.value: kind.name.lower() for kind in Kind})
        for status in Status:
            self.assertIn(f"{status.value} {status.name.replace('_', ' ').lower()}", text.lower())

    def test_sizes(self) -> None:
        """The layouts are as long as the packets."""
        for title, size in (("Session control", CONTROL_SIZE), ("Lost-key notices", NOTICE_SIZE)):
            rows = table(section(self.page, title), "offset")
            sizes = [int(row[1]) for row in rows]
            self.assertEqual([int(row[0]) for row in rows], [sum(sizes[:i]) for i in range(len(sizes))])
            self.assertEqual(sum(sizes), size, title)

    def test_parameters(self) -> None:
        """The table of parameters has every type."""
        types = [int(row[0]) for row in table(section(self.page, "Parameters"), "type")]
        self.assertEqual(types, [kind.value for kind in parameters._Type])


class SecurityTests(SynchronousTestCase):
    """docs/security.md promises what the code keeps."""

    def test_bounds(self) -> None:
        """Each bound is the number that its constant has."""
        rows = table(section("docs/security.md", "Bounds"), "what")
        self.assertGreater(len(rows), 10)
        for _, bound, constant in rows:
            module, name = constant.strip("`").rsplit(".", 1)
            self.assertEqual(float(bound), getattr(import_module(f"rvpn.{module}"), name), constant)


class SourceTests(SynchronousTestCase):
    """What the pages say of the source is there."""

    def test_files(self) -> None:
        """Each file of the source that a page names exists."""
        pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
        files = {
            file for page in pages for file in re.findall(r"\b(?:rvpn|tests)/[\w/]+\.py\b", page.read_text())
        }
        self.assertGreater(len(files), 10)
        self.assertEqual([file for file in sorted(files) if not (ROOT / file).exists()], [])

    def test_decisions(self) -> None:
        """The table of who decides what names modules, classes and methods that exist."""
        for _, deciders in table(section("docs/architecture.md", "How a failover goes"), "question"):
            for name in re.findall(r"`([a-z_]+\.[\w.]+)`", deciders):
                package = (ROOT / "rvpn" / name.split(".")[0]).is_dir()
                parts = name.split(".")
                found: Any = import_module("rvpn." + ".".join(parts[: 1 + package]))
                for part in parts[1 + package :]:
                    found = getattr(found, part)


class PolicyExampleTests(SynchronousTestCase):
    """The policies that readers copy."""

    def test_examples(self) -> None:
        """Every policy in README and the tutorial is without error, and so are the samples in etc."""
        texts = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "etc").glob("*.policy")}
        for page in ("README.md", "docs/tutorial.md"):
            blocks = re.findall(r"^```ini\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)
            texts |= {f"{page} ({number})": text for number, text in enumerate(blocks)}
        self.assertGreaterEqual(len(texts), 6)
        errors = [
            str(diagnostic)
            for name, text in texts.items()
            for diagnostic in check(text, name)[1]
            if diagnostic.severity is Severity.ERROR
        ]
        self.assertEqual(errors, [])


class LabTests(SynchronousTestCase):
    """docs/lab.md tells what the lab can do."""

    def test_commands(self) -> None:
        """Every command of `rvpn lab` stands on the page."""
        text = read("docs/lab.md")
        commands = re.findall(r"^    ([a-z]+)\s", rvpn("lab", "--help").out, re.MULTILINE)
        self.assertIn("failover", commands)
        self.assertEqual([name for name in commands if f"`rvpn lab {name}" not in text], [])

    def test_example(self) -> None:
        """In the example of a test, answers find the client after the failover that it makes."""
        (topology,) = re.findall(r"Lab\.start\(Topology\((.*)\)\)", section("docs/lab.md", "In a test"))
        self.assertIn("proxy_arp=True", topology.split(", "))
