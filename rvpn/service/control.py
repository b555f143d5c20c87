"""
The control socket: what `rvpn status` and `rvpn reload` ask of a running service.

A connection carries lines of JSON: {"command": "status"} in, one object out, {"error": "..."} where something
is wrong. Only the service's user may connect (mode 0600), so commands need no authentication of their own;
lines, connections and their time are bounded all the same.
"""

import json
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorUNIX
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.protocols.policies import TimeoutMixin

from rvpn.errors import LocalError

#: Returns what JSON can hold, or raises `LocalError`, whose text becomes the answer.
Command = Callable[[], Mapping[str, object]]

LONGEST_LINE = 1024
MOST_CONNECTIONS = 16
#: Seconds after which a silent connection is closed.
IDLE_TIME = 10.0


class ControlProtocol(LineOnlyReceiver, TimeoutMixin):
    """One connection: a request a line, an answer a line."""

    delimiter = b"\n"
    MAX_LENGTH = LONGEST_LINE

    def __init__(self, server: "ControlServer") -> None:
        self._server = server

    def connectionMade(self) -> None:
        """Start the clock, or turn away one connection too many."""
        self._server.connections.add(self)
        if len(self._server.connections) > MOST_CONNECTIONS:
            self._answer({"error": "too many connections to the control socket; try again"})
            self.close()
        else:
            self.setTimeout(IDLE_TIME)

    def lineReceived(self, line: bytes) -> None:
        """Answer one request."""
        self.resetTimeout()
        self._answer(self._server.answer(line))

    def connectionLost(self, _reason: object = None) -> None:
        """Stop the clock."""
        self._server.connections.discard(self)
        self.setTimeout(None)

    def close(self) -> None:
        """Close the connection once what was answered is on its way."""
        assert self.transport is not None
        self.transport.loseConnection()

    def _answer(self, answer: Mapping[str, object]) -> None:
        self.sendLine(json.dumps(answer, separators=(",", ":")).encode())


class ControlServer(Factory):
    """Answers `commands` by name on a Unix socket."""

    noisy = False
    _log = Logger()

    def __init__(self, path: str, commands: Mapping[str, Command]) -> None:
        self.path = path
        self.connections: set[ControlProtocol] = set()
        self._commands = commands
        self._port: IListeningPort | None = None

    def buildProtocol(self, _address: IAddress | None) -> ControlProtocol:
        """Take one connection."""
        return ControlProtocol(self)

    def answer(self, request: bytes) -> Mapping[str, object]:
        """Carry out one request; whatever goes wrong is an answer too."""
        try:
            name = json.loads(request)["command"]
            command = self._commands[name]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {"error": f'expected {{"command": NAME}} with one of: {", ".join(sorted(self._commands))}'}
        try:
            return command()
        except LocalError as error:
            return {"error": str(error)}
        except Exception:
            self._log.failure("command {name} failed", name=name)
            return {"error": f"{name} failed; the service's log says how"}

    def start(self, reactor: IReactorUNIX) -> None:
        """
        Listen. The directory is made if only that is missing; a socket that a dead process left is replaced.

        Raises `LocalError` if a live process listens there already, or the place cannot be used.
        """
        path = Path(self.path)
        try:
            path.parent.mkdir(mode=0o755, exist_ok=True)
            _remove_stale(path)
            # Twisted sets the mode between bind and listen: before, nobody can connect, whatever the umask.
            self._port = reactor.listenUNIX(self.path, self, backlog=MOST_CONNECTIONS, mode=0o600)
        except CannotListenError as error:
            raise LocalError(f"{path}: cannot listen on this control socket: {error.socketError}") from None
        except OSError as error:
            raise LocalError(f"{path}: cannot listen on this control socket: {error.strerror}") from None

    def stop(self) -> Deferred[None]:
        """Close every connection and the socket; fires when its file is gone. May be called at any time."""
        for connection in list(self.connections):
            connection.close()
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        # Twisted removes the file as it closes the port; had somebody done so before, it would never finish.
        with suppress(OSError):
            Path(self.path).parent.mkdir(exist_ok=True)
            Path(self.path).touch()
        return port.stopListening() or succeed(None)


def _remove_stale(path: Path) -> None:
    """Remove the socket of a process that died. Raises `LocalError` if it lives or is no socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise LocalError(f"{path}: found a file that is not a socket, expected none or the control socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except BlockingIOError:
            pass  # alive, with a full backlog
    raise LocalError(
        f"{path}: another process listens on this control socket; is the service running already?"
    )
