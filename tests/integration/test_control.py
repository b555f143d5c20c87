"""The control socket on a real Unix socket: asked, replaced when stale, refused when alive, taken back."""

import os
import socket
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IReactorUNIX
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from rvpn.cli.control_socket import ask
from rvpn.errors import LocalError
from rvpn.service.control import ControlServer

Steps = Generator[Deferred[Any], Any, None]


class ControlSocketTests(TestCase):
    """What a service and `rvpn status` do with the file in /run/rvpn."""

    def setUp(self) -> None:
        """Choose a path short enough for a Unix socket, whose directory does not exist yet."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = f"{directory.name}/run/gateway.sock"

    def serve(self) -> ControlServer:
        """Start a server for this test."""
        server = ControlServer(self.path, {"status": lambda: {"role": "gateway", "pid": os.getpid()}})
        server.start(IReactorUNIX(reactor))
        self.addCleanup(server.stop)
        return server

    def refusal(self, timeout: float = 5.0) -> str:
        """Return the sentence with which `ask` gives up."""
        return str(self.assertRaises(LocalError, ask, self.path, "status", timeout))

    @inlineCallbacks
    def test_ask(self) -> Steps:
        """A command draws its answer, an unknown one a LocalError with the known ones."""
        self.serve()
        answer = yield deferToThread(ask, self.path, "status")
        self.assertEqual(answer, {"role": "gateway", "pid": os.getpid()})
        error = yield self.assertFailure(deferToThread(ask, self.path, "dance"), LocalError)
        self.assertIn("status", str(error))

    @inlineCallbacks
    def test_private_and_taken_back(self) -> Steps:
        """The socket is its owner's alone whatever the umask, and gone after `stop`."""
        self.addCleanup(os.umask, os.umask(0))
        server = self.serve()
        self.assertEqual(Path(self.path).stat().st_mode & 0o777, 0o600)
        yield server.stop()
        self.assertFalse(Path(self.path).exists())

    @inlineCallbacks
    def test_stop_without_file(self) -> Steps:
        """A socket file that somebody removed does not keep the service from stopping."""
        server = self.serve()
        Path(self.path).unlink()
        Path(self.path).parent.rmdir()
        yield server.stop()
        self.assertFalse(Path(self.path).exists())

    def test_stale_is_replaced(self) -> None:
        """The socket of a process that died is no obstacle, and says so to who asks before."""
        Path(self.path).parent.mkdir()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(self.path)
        self.assertIn("nobody listens", self.refusal())
        self.serve()

    def test_live_is_refused(self) -> None:
        """A second service on the same path fails, and the first one's socket stays."""
        self.serve()
        error = self.assertRaises(LocalError, ControlServer(self.path, {}).start, IReactorUNIX(reactor))
        self.assertIn("another process listens", str(error))
        self.assertTrue(Path(self.path).is_socket())

    def test_other_file_is_left_alone(self) -> None:
        """A regular file in the socket's place is an error, not overwritten."""
        Path(self.path).parent.mkdir()
        Path(self.path).write_text("precious")
        error = self.assertRaises(LocalError, ControlServer(self.path, {}).start, IReactorUNIX(reactor))
        self.assertIn("not a socket", str(error))
        self.assertEqual(Path(self.path).read_text(), "precious")

    def test_unusable_place(self) -> None:
        """A path too long for a Unix socket, or below a missing directory, is a LocalError."""
        for path in (f"{self.path}{'x' * 200}", f"{self.path}/missing/deeper/sock"):
            error = self.assertRaises(LocalError, ControlServer(path, {}).start, IReactorUNIX(reactor))
            self.assertIn("cannot listen", str(error))

    def test_nobody(self) -> None:
        """No socket at all: the question is whether the service runs."""
        self.assertIn("no such control socket: is the service running?", self.refusal())

    def test_no_answer(self) -> None:
        """A service that hangs is waited for no longer than asked."""
        Path(self.path).parent.mkdir()
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(self.path)
            silent.listen()
            self.assertIn("did not answer within 0.05 s", self.refusal(timeout=0.05))
