"""
The way into a laboratory, for tests, for the demonstration and for `rvpn lab`.

    with Lab.start(Topology(family=6)) as lab:
        lab.traffic("client", "ping", "2001:db8:0:21::1")     # a tool of rvpn.lab.traffic, as a dict
        lab.run("router", ["cat", "/proc/net/dev"]).output    # any command in any node
        lab.change("set_cut", "gateway1", "out", True)        # any of rvpn.lab.network's changes

`start` runs the holder (`rvpn.lab.holder`) and owns it: the laboratory ends with the `with` block, and also
with this process, however it dies. A detached one stays; `attach` finds it again by its directory.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rvpn.errors import LocalError
from rvpn.lab import holder, requirements, wire
from rvpn.lab.process import Finished, Measurement, Process
from rvpn.lab.topology import Topology

START_TIME = 20.0
END_TIME = 10.0

#: Descriptors for input, output and errors of a process; None is /dev/null.
Files = tuple[int | None, int | None, int | None]
Parent = subprocess.Popen[bytes]


class Lab:
    """A running laboratory."""

    def __init__(self, topology: Topology, directory: Path, parent: Parent | None, temporary: bool) -> None:
        self.topology = topology
        #: Where keys, policies, logs and sockets are; mode 0700.
        self.directory = directory
        self._parent, self._temporary = parent, temporary

    @classmethod
    def start(
        cls, topology: Topology | None = None, directory: Path | None = None, detached: bool = False
    ) -> Self:
        """
        Build the network; its files are in a new temporary directory unless one is given.

        Raises `LocalError` with what the machine lacks, or what went wrong; then the directory is removed.
        """
        topology = topology or Topology()
        if absent := requirements.missing():
            raise LocalError("\n".join(absent))
        temporary = directory is None
        directory = Path(tempfile.mkdtemp(prefix="rvpn-lab-")) if directory is None else directory
        try:
            parent = _start_holder(topology, directory, detached, temporary)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return cls(topology, directory, None if detached else parent, temporary)

    @classmethod
    def attach(cls, directory: Path) -> Self:
        """Find a detached laboratory again. Raises `LocalError` if none runs there."""
        if not is_running(directory):
            raise LocalError("no laboratory is running; start one with: rvpn lab up")
        status = wire.ask(directory / holder.SOCKET, {"do": "status"})
        return cls(Topology(**status["topology"]), directory, None, temporary=True)

    def close(self) -> None:
        """End every process and namespace of the laboratory, and remove its directory if it made that."""
        if self._parent is None:
            _end_detached(self.directory)
        else:
            _end_owned(self._parent)
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        """Return the laboratory itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """End it."""
        self.close()

    # --- Requests --------------------------------------------------------------------------------

    def status(self) -> wire.Message:
        """Return topology, named processes and what is changed in the network."""
        return self._ask({"do": "status"})

    def change(self, change: str, *arguments: object) -> None:
        """Make one of `rvpn.lab.network`'s changes. Raises `LocalError` if it is refused."""
        self._ask({"do": "network", "change": change, "arguments": arguments})

    def signal(self, process: int | str, number: int) -> None:
        """Signal a process by its name or its number inside. Raises `LocalError` if it does not run."""
        self._ask({"do": "signal", "process": process, "number": number})

    def spawn(
        self,
        node: str,
        argv: Sequence[str],
        files: Files = (None, None, None),
        *,
        name: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """
        Start a command in a node; with a name it outlives the `Process` that is returned.

        Raises `LocalError` if the node, the command or a free name is missing.
        """
        request: wire.Message = {"do": "start", "node": node, "argv": list(argv), "name": name, "cwd": cwd}
        request |= {"env": None if env is None else dict(env)}
        try:
            connection = wire.connect(self.directory / holder.SOCKET, START_TIME)
        except OSError:
            raise LocalError("the laboratory ended") from None
        try:
            with Path(os.devnull).open("r+b") as nothing:
                wire.send(connection, request, [nothing.fileno() if file is None else file for file in files])
            answer, _ = wire.receive(connection)
            if "error" in answer:
                raise LocalError(answer["error"])
        except BaseException:
            connection.close()
            raise
        return Process(connection, answer["pid"], self.signal)

    def run(self, node: str, argv: Sequence[str], timeout: float = 60.0) -> Finished:
        """Run a command in a node to its end. Raises `LocalError` if it takes more than `timeout` seconds."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            with self.spawn(node, argv, (None, output.fileno(), errors.fileno())) as process:
                try:
                    code = process.wait(timeout)
                except TimeoutError:
                    raise LocalError(f"{argv[0]} in {node} took more than {timeout:g} s") from None
            output.seek(0)
            errors.seek(0)
            return Finished(code, output.read(), errors.read())

    def start_ready(self, node: str, argv: Sequence[str], name: str | None = None) -> Process:
        """Start a command in a node and return when it has written a first line: that it is ready."""
        readable, writable = os.pipe2(os.O_CLOEXEC)
        log = self.directory / f"{name or node}.log"
        try:
            with log.open("ab") as errors:
                process = self.spawn(node, argv, (None, writable, errors.fileno()), name=name)
            os.close(writable)
            writable = -1
            if select.select([readable], [], [], START_TIME)[0] and os.read(readable, 64):
                return process
            process.close()
            raise LocalError(f"{' '.join(argv[1:3])} in {node} did not get ready:\n{tail(log)}")
        finally:
            os.close(readable)
            if writable != -1:
                os.close(writable)

    # --- Traffic ---------------------------------------------------------------------------------

    def start_traffic(self, node: str, *arguments: object) -> Measurement:
        """Start a tool of `rvpn.lab.traffic` in a node."""
        return self._start_tool(node, "rvpn.lab.traffic", arguments)

    def start_load(self, node: str, *arguments: object) -> Measurement:
        """Start a tool of `rvpn.lab.load` in a node; `serve_load` must have been called."""
        return self._start_tool(node, "rvpn.lab.load", arguments)

    def _start_tool(self, node: str, module: str, arguments: Sequence[object]) -> Measurement:
        argv = [sys.executable, "-m", module, *map(str, arguments)]
        output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (result closes them)
        return Measurement(self.spawn(node, argv, (None, output.fileno(), errors.fileno())), output, errors)

    def traffic(self, node: str, *arguments: object, timeout: float = 60.0) -> dict[str, Any]:
        """Run a tool of `rvpn.lab.traffic` in a node; return its figures. Raises as `Measurement.result`."""
        return self.start_traffic(node, *arguments).result(timeout)

    def start_monitor(self, node: str, *arguments: object) -> Process:
        """Start a tool of `rvpn.lab.monitor` in a node; when this returns it is at work."""
        return self.start_ready(node, [sys.executable, "-m", "rvpn.lab.monitor", *map(str, arguments)])

    def serve_targets(self) -> None:
        """Start the servers that `fetch`, `stream` and `udp` talk to, on every target."""
        for target in self.topology.target_names:
            self.start_ready(target, [sys.executable, "-m", "rvpn.lab.servers"], f"{target}-server").close()

    def serve_load(self) -> None:
        """Start the other end of `start_load` on the first target."""
        argv = [sys.executable, "-m", "rvpn.lab.load", "serve"]
        self.start_ready(self.topology.target_names[0], argv, "load").close()

    def _ask(self, request: wire.Message) -> wire.Message:
        return wire.ask(self.directory / holder.SOCKET, request)


def tail(path: Path, lines: int = 20) -> str:
    """Return the last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"{path}: {error.strerror}"


def default_directory() -> Path:
    """Return the directory of the laboratory that `rvpn lab up` makes, one per user."""
    return Path(tempfile.gettempdir(), f"rvpn-lab-{os.getuid()}")


def fresh_directory() -> Path:
    """
    Make `default_directory`, empty and for its owner alone, and return it.

    Raises `LocalError` if a laboratory runs there, or if it is somebody else's.
    """
    directory = default_directory()
    if is_running(directory):
        raise LocalError("a laboratory is running already; end it with: rvpn lab down")
    try:
        if directory.is_dir() and not directory.is_symlink():
            shutil.rmtree(directory)  # what a laboratory that was killed left behind
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise LocalError(f"{directory}: cannot make this directory: {error.strerror}") from None
    return directory


def is_running(directory: Path) -> bool:
    """Tell whether a laboratory runs in that directory."""
    try:
        wire.connect(directory / holder.SOCKET).close()
    except OSError:
        return False
    return True


# --- The holder's life -----------------------------------------------------------------------------


def _start_holder(topology: Topology, directory: Path, detached: bool, temporary: bool) -> Parent:
    """Start the holder and return when the network is ready. Raises `LocalError`."""
    argv = [*requirements.unshare_command(), sys.executable, "-m", "rvpn.lab.holder", str(directory)]
    argv += map(str, (topology.family, topology.gateways, topology.targets))
    argv += ["--proxy-arp"] * topology.proxy_arp
    argv += ["--detached"] * detached + ["--temporary"] * temporary
    log = directory / "holder.log"
    with log.open("wb") as errors:
        parent = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    ready = False
    assert parent.stdout is not None
    try:
        with parent.stdout:
            ready = bool(select.select([parent.stdout], [], [], START_TIME)[0] and parent.stdout.readline())
    finally:
        if not ready:
            parent.kill()
            parent.wait()
    if not ready:
        raise LocalError(f"the laboratory did not start:\n{tail(log)}")
    return parent


def _end_owned(parent: Parent) -> None:
    """End a holder by closing its standard input; `unshare` ends when the namespaces have."""
    if parent.stdin is not None:
        parent.stdin.close()
    try:
        parent.wait(END_TIME)
    except subprocess.TimeoutExpired:
        parent.kill()
        parent.wait()


def _end_detached(directory: Path) -> None:
    """Tell a holder to end and wait for it: the kernel kills all in its PID namespace before it is gone."""
    try:
        connection = wire.connect(directory / holder.SOCKET, END_TIME)
    except OSError:
        return
    with connection:
        # struct ucred begins with the PID, translated to our PID namespace.
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        gone = os.pidfd_open(int.from_bytes(credentials[:4], sys.byteorder))
        try:
            wire.send(connection, {"do": "end"})
            if not select.select([gone], [], [], END_TIME)[0]:
                signal.pidfd_send_signal(gone, signal.SIGKILL)
        finally:
            os.close(gone)
