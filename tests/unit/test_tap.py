"""What twistd sees of rvpn: arguments, the making of a service, the JSON log. Nothing is opened here."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from twisted.application.app import ServerOptions
from twisted.application.service import MultiService, Service
from twisted.logger import LogLevel, capturedLogs, formatEvent, globalLogPublisher
from twisted.python import usage
from twisted.python.failure import Failure
from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase

from rvpn import __version__, tap
from rvpn.constants import Role
from rvpn.errors import LocalError
from rvpn.service.jsonlog import JSONLog, plain
from rvpn.service.process import Process
from twisted.plugins import rvpn_plugins


class FakeNode(Service):
    """A `TunnelService` that opens nothing, or fails with `error`."""

    role = Role.GATEWAY
    error: Exception | None = None

    def __init__(self, file: str, reactor: Any) -> None:
        self.file = file
        self.opened = False

    def open(self) -> None:
        """Take nothing from the host."""
        if self.error is not None:
            raise self.error
        self.opened = True


def make(*words: str, error: Exception | None = None) -> list[Any]:
    """Make the service of these arguments; return its parts, the first started first."""
    options = tap.Options()
    options.parseOptions(["--policy", "x.policy", *words])
    fake = type("Node", (FakeNode,), {"error": error})
    made = tap.Role(fake).makeService(options)
    assert isinstance(made, MultiService)
    return list(made)


def refusal(*words: str) -> str:
    """Return what is said about arguments of twistd."""
    options = ServerOptions()
    try:
        options.parseOptions(words)
    except SystemExit as end:
        return str(end)
    raise AssertionError("they were taken")


class OptionsTests(SynchronousTestCase):
    """The arguments of either role."""

    def test_taken(self) -> None:
        """The policy, in long and short, and a JSON log."""
        for words in ["--policy=x", "--json-log", "-"], ["-p", "x", "--json-log=-"]:
            options = tap.Options()
            options.parseOptions(words)
            self.assertEqual((options["policy"], options["json-log"]), ("x", "-"))

    def test_wrong(self) -> None:
        """Wrong arguments get one line that names the command and where to find more."""
        tells_more = "; twistd rvpn-client --help tells more"
        for words, fault in (
            ([], "expected --policy FILE"),
            (["--policy="], "expected --policy FILE"),
            (["--polcy", "x"], "option --polcy not recognized"),
            (["x.policy"], "found x.policy, expected --policy FILE"),
        ):
            self.assertEqual(refusal("rvpn-client", *words), f"twistd rvpn-client: {fault}{tells_more}")

    def test_help(self) -> None:
        """`--help` shows how the whole command is written, and `--version` the version of rvpn."""
        for word, expected in (
            ("--help", "rvpn-gateway --policy FILE [--json-log FILE]\n"),
            ("--version", f"rvpn {__version__}\n"),
        ):
            with contextlib.redirect_stdout(io.StringIO()) as output:
                self.assertIn(refusal("rvpn-gateway", word), ("0", ""))
            self.assertIn(expected, output.getvalue())


class RoleTests(SynchronousTestCase):
    """From arguments to a service."""

    def test_plugins(self) -> None:
        """Both roles are found by name."""
        for plugin, name, role in (
            (rvpn_plugins.client, "rvpn-client", tap.client),
            (rvpn_plugins.gateway, "rvpn-gateway", tap.gateway),
        ):
            self.assertEqual(plugin.tapname, name)
            self.assertIs(namedAny(plugin.module), role)
            self.assertTrue(issubclass(role.Options, usage.Options))

    def test_made(self) -> None:
        """The node is open before twistd goes on; signals come to it when it has started."""
        node, process = make()
        self.assertTrue(node.opened)
        self.assertEqual(node.file, "x.policy")
        self.assertIsInstance(process, Process)

    def test_json_log_comes_first(self) -> None:
        """The JSON log is there before the others say anything, and until they have stopped."""
        log, node, _ = make("--json-log", self.mktemp())
        self.assertIsInstance(log, JSONLog)
        self.assertTrue(node.opened)

    def test_refused(self) -> None:
        """Each line of what is wrong names the role; an error of the system is no traceback either."""
        for error, lines in (
            (LocalError("no"), "rvpn gateway: no"),
            (LocalError("a:1: no\na:2: no"), "rvpn gateway: a:1: no\nrvpn gateway: a:2: no"),
            (OSError(24, "Too many open files"), "rvpn gateway: [Errno 24] Too many open files"),
        ):
            refused = self.assertRaises(SystemExit, make, error=error)
            self.assertEqual(refused.code, lines)
        log = self.assertRaises(SystemExit, make, "--json-log", "/no/log")
        self.assertEqual(log.code, "rvpn gateway: /no/log: cannot open the log: No such file or directory")


class JSONLogTests(SynchronousTestCase):
    """One object per line."""

    def test_plain(self) -> None:
        """Time, level, origin and text come first, then plain fields; a field replaces none of the four."""
        event = {
            "log_time": 1.5,
            "log_level": LogLevel.warn,
            "log_namespace": "rvpn.net.host",
            "log_format": "{count} of {thing}",
            "count": 3,
            "thing": [object()],
            "time": "noon",
            "isError": 0,
        }
        line = plain(event)
        self.assertEqual(list(line), ["time", "level", "origin", "text", "count"])
        self.assertEqual((line["time"], line["level"], line["count"]), (1.5, "warn", 3))
        self.assertTrue(line["text"].startswith("3 of [<object"))

    def test_failure(self) -> None:
        """A failure has its traceback."""
        try:
            raise ZeroDivisionError("inner")
        except ZeroDivisionError:
            failure = Failure()
        line = plain({"log_format": "went wrong", "log_failure": failure, "log_level": LogLevel.critical})
        self.assertEqual((line["text"], line["level"]), ("went wrong", "critical"))
        self.assertIn("ZeroDivisionError: inner", line["traceback"])

    def test_appended(self) -> None:
        """Lines are added to what the file has, each readable at once."""
        path = Path(self.mktemp())
        path.write_text("before\n")
        log = JSONLog(str(path))
        log({"log_format": "line\nbreak", "name": "caf\u00e9"})
        before, line = path.read_text().splitlines()
        self.assertEqual(before, "before")
        self.assertEqual(json.loads(line)["text"], "line\nbreak")

    def test_full_disk(self) -> None:
        """A full disk costs lines and nothing else; the other logs are told once."""
        log = JSONLog("/dev/full")
        log.startService()
        self.addCleanup(globalLogPublisher.removeObserver, log)
        with capturedLogs() as told:
            for _ in range(3):
                log({"log_format": "lost"})
        (event,) = told
        self.assertEqual(formatEvent(event), "/dev/full: the log is incomplete: No space left on device")
