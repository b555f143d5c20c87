"""The control socket's protocol: one JSON line in, one out, whatever comes in. No socket is opened here."""

import json
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from rvpn.errors import LocalError
from rvpn.service.control import (
    IDLE_TIME,
    LONGEST_LINE,
    MOST_CONNECTIONS,
    Command,
    ControlProtocol,
    ControlServer,
)


def refuse() -> dict[str, object]:
    """Fail as a command does that the administrator can mend."""
    raise LocalError("gw.ini: found a cat, expected a policy")


def crash() -> dict[str, object]:
    """Fail as only a mistake of ours does."""
    raise ZeroDivisionError("inner detail")


COMMANDS: dict[str, Command] = {"status": lambda: {"role": "gateway"}, "reload": refuse, "crash": crash}


class ControlProtocolTests(SynchronousTestCase):
    """A connection answers every line and is bounded in every direction."""

    def setUp(self) -> None:
        """Make a server that listens nowhere."""
        self.clock = Clock()
        self.server = ControlServer("/nowhere", COMMANDS)

    def connect(self) -> tuple[ControlProtocol, StringTransport]:
        """Open a connection that stays open for this test."""
        protocol, transport = self.server.buildProtocol(None), StringTransport()
        protocol.callLater = self.clock.callLater  # type: ignore[method-assign, assignment]  # meant for it
        protocol.makeConnection(transport)
        return protocol, transport

    def ask(self, line: bytes) -> Any:
        """Send one line and return the answer."""
        protocol, transport = self.connect()
        protocol.dataReceived(line + b"\n")
        answer = transport.value()
        self.assertEqual(answer.count(b"\n"), 1)
        return json.loads(answer)

    def test_answers_in_turn(self) -> None:
        """Requests on one connection are answered in their order, however they are cut into segments."""
        protocol, transport = self.connect()
        for part in (b'{"comm', b'and":"status"}\n{"command"', b':"reload"}\n'):
            protocol.dataReceived(part)
        answers = [json.loads(line) for line in transport.value().splitlines()]
        self.assertEqual(answers[0], {"role": "gateway"})
        self.assertEqual(answers[1], {"error": "gw.ini: found a cat, expected a policy"})

    def test_unknown_command(self) -> None:
        """An unknown command is told the known ones."""
        self.assertIn("crash, reload, status", self.ask(b'{"command": "dance"}')["error"])

    def test_garbage(self) -> None:
        """Whatever is not a request gets the same answer and raises nothing."""
        for line in (b"", b"{", b"\xff\xfe", b"7", b"[]", b"{}", b'{"command": []}', b"null", b"[" * 1000):
            self.assertIn("expected", self.ask(line)["error"])

    def test_failing_command(self) -> None:
        """A command that fails by our mistake is logged, and the answer tells nothing of the inside."""
        answer = self.ask(b'{"command": "crash"}')
        self.assertEqual(answer, {"error": "crash failed; the service's log says how"})
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_overlong_line(self) -> None:
        """A line without end closes the connection instead of filling memory."""
        protocol, transport = self.connect()
        protocol.dataReceived(b"x" * (2 * LONGEST_LINE))
        self.assertTrue(transport.disconnecting)

    def test_silence(self) -> None:
        """A connection that says nothing is closed; one that asks now and then is not."""
        (silent, silent_transport), (busy, busy_transport) = self.connect(), self.connect()
        for _ in range(3):
            self.clock.advance(IDLE_TIME / 2)
            busy.dataReceived(b'{"command": "status"}\n')
        self.assertTrue(silent_transport.disconnecting)
        self.assertFalse(busy_transport.disconnecting)
        for protocol in (silent, busy):
            protocol.connectionLost()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_too_many_connections(self) -> None:
        """One connection too many is told so and closed; when another ends, there is room again."""
        held = [self.connect() for _ in range(MOST_CONNECTIONS)]
        protocol, transport = self.connect()
        self.assertIn(b"too many connections", transport.value())
        self.assertTrue(transport.disconnecting)
        protocol.connectionLost()
        held[0][0].connectionLost()
        self.assertEqual(self.ask(b'{"command": "status"}'), {"role": "gateway"})
