"""
The way into a laboratory, for tests, for the demonstration and for `rvpn lab`.

    with Lab.start(Topology(family=6)) as lab:
        lab.traffic("client", "ping", "2001:db8:0:21::1")     # a tool of rvpn.lab.traffic, as a dict
        lab.run("router", ["cat", "/proc/net/dev"]).output    # any command in any node
        lab.change("set_cut", "gateway1", "out", True)        # any of rvpn.lab.network's changes

`start` runs the holder (`rvpn.lab.holder`) and owns it: the laboratory ends with the `with` block, and also with
this process, however it dies. A detached one stays; `attach` finds it again by its directory.
"""

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from types import TracebackType
from typing import Any, BinaryIO, Self

from rvpn.errors import LocalError
from rvpn.lab import holder, requirements, wire
from rvpn.lab.topology import Topology

START_TIME = 20.0
END_TIME = 10.0


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command in a node ended: its exit code (negative: the signal) and what it wrote."""

    code: int
    output: bytes
    errors: bytes


class Process:
    """A process in a node. Closing it kills it, unless it has a name."""

    def __init__(self, lab: "Lab", connection: socket.socket, pid: int) -> None:
        self._lab, self._connection = lab, connection
        #: The process's number inside the laboratory.
        self.pid = pid
        #: Its exit code once it has ended and `wait` has noticed; negative: the signal.
        self.code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises TimeoutError after `timeout` seconds, `LocalError` if the lab has ended."""
        if self.code is None:
            self._connection.settimeout(timeout)
            try:
                answer, _ = wire.receive(self._connection)
            except (EOFError, ConnectionError):
                raise LocalError("the laboratory ended") from None
            self.code = answer["exit"]
        return self.code

    def running(self) -> bool:
        """Tell whether it has not ended yet."""
        if self.code is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.code is None

    def signal(self, number: int) -> None:
        """Signal the process and those it started. Raises `LocalError` if it has ended."""
        self._lab.signal(self.pid, number)

    def close(self) -> None:
        """Let go of the process."""
        self._connection.close()

    def __enter__(self) -> Self:
        """Return the process itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Let go of the process."""
        self.close()


@dataclass(slots=True)
class Measurement:
    """A tool of `rvpn.lab.traffic` at work; `result` waits for its figures."""

    process: Process
    _output: BinaryIO = field(repr=False)
    _errors: BinaryIO = field(repr=False)

    def result(self, timeout: float = 60.0) -> dict[str, Any]:
        """Return the tool's figures. Raises `LocalError` with its words if it measured nothing."""
        with self.process, self._output, self._errors:
            try:
                self.process.wait(timeout)
            except TimeoutError:
                raise LocalError(f"no result within {timeout:g} s") from None
            self._output.seek(0)
            self._errors.seek(0)
            try:
                figures: dict[str, Any] = json.loads(self._output.read())
            except ValueError:
                raise LocalError(self._errors.read().decode(errors="replace").strip() or "no result") from None
            return figures


class Lab:
    """A running laboratory."""

    def __init__(self, topology: Topology, directory: Path, parent: "subprocess.Popen[bytes] | None") -> None:
        self.topology = topology
        #: Where keys, policies, logs and sockets are; mode 0700.
        self.directory = directory
        self._parent = parent
        self._temporary = False

    # --- Its life --------------------------------------------------------------------------------

    @classmethod
    def start(
        cls, topology: Topology | None = None, directory: Path | None = None, detached: bool = False
    ) -> Self:
        """
        Build the network, in a new temporary directory unless one is given.

        Raises `LocalError` with what the machine lacks, or what went wrong.
        """
        topology = topology or Topology()
        if absent := requirements.missing():
            raise LocalError("\n".join(absent))
        temporary = directory is None
        directory = Path(tempfile.mkdtemp(prefix="rvpn-lab-")) if directory is None else directory
        try:
            lab = cls(topology, directory, _start_holder(topology, directory, detached))
        except BaseException:
            if temporary:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        lab._temporary = temporary
        return lab

    @classmethod
    def attach(cls, directory: Path) -> Self:
        """Find a detached laboratory again. Raises `LocalError` if none runs there."""
        try:
            wire.connect(directory / holder.SOCKET).close()
        except OSError:
            raise LocalError("no laboratory is running; start one with: rvpn lab up") from None
        status = wire.ask(directory / holder.SOCKET, {"do": "status"})
        return cls(Topology(**status["topology"]), directory, None)

    def close(self) -> None:
        """End every process and namespace of the laboratory; returns when they are gone."""
        if self._parent is None:
            self._end_detached()
        else:
            assert self._parent.stdin is None or not self._parent.stdin.closed
            _end_owned(self._parent)
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        """Return the laboratory itself."""
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
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

    def wait(self, name: str, timeout: float) -> int:
        """Return the exit code of a named process. Raises `LocalError` if it does not run or does not end."""
        request = {"do": "wait", "process": name}
        code: int = wire.ask(self.directory / holder.SOCKET, request, timeout)["exit"]
        return code

    def spawn(
        self,
        node: str,
        argv: Sequence[str],
        *,
        name: str | None = None,
        files: tuple[int, int, int] | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """
        Start a command in a node with these descriptors for input, output and errors (None: /dev/null).

        Raises `LocalError` if the node, the command or a free name is missing.
        """
        request = {"do": "start", "node": node, "argv": list(argv), "name": name, "cwd": cwd}
        request["env"] = None if env is None else dict(env)
        connection = wire.connect(self.directory / holder.SOCKET, timeout=START_TIME)
        try:
            with open(os.devnull, "r+b") as nothing:
                wire.send(connection, request, files or (nothing.fileno(),) * 3)
            answer, _ = wire.receive(connection)
            if "error" in answer:
                raise LocalError(answer["error"])
        except BaseException:
            connection.close()
            raise
        return Process(self, connection, answer["pid"])

    def run(self, node: str, argv: Sequence[str], timeout: float = 60.0) -> Finished:
        """Run a command in a node to its end. Raises `LocalError` if it takes longer than `timeout` seconds."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            with open(os.devnull, "rb") as nothing:
                files = (nothing.fileno(), output.fileno(), errors.fileno())
                process = self.spawn(node, argv, files=files)
            with process:
                try:
                    code = process.wait(timeout)
                except TimeoutError:
                    raise LocalError(f"{argv[0]} in {node} took longer than {timeout:g} s") from None
            output.seek(0)
            errors.seek(0)
            return Finished(code, output.read(), errors.read())

    # --- Traffic ---------------------------------------------------------------------------------

    def start_traffic(self, node: str, *arguments: object) -> Measurement:
        """Start a tool of `rvpn.lab.traffic` in a node."""
        argv = [sys.executable, "-m", "rvpn.lab.traffic", *map(str, arguments)]
        output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (result closes them)
        with open(os.devnull, "rb") as nothing:
            files = (nothing.fileno(), output.fileno(), errors.fileno())
            return Measurement(self.spawn(node, argv, files=files), output, errors)

    def traffic(self, node: str, *arguments: object, timeout: float = 60.0) -> dict[str, Any]:
        """Run a tool of `rvpn.lab.traffic` in a node; return its figures. Raises `LocalError` as `result` does."""
        return self.start_traffic(node, *arguments).result(timeout)

    def start_ready(self, node: str, argv: Sequence[str], name: str | None, timeout: float = START_TIME) -> Process:
        """Start a command in a node and return when it has written a first line: that it is ready."""
        readable, writable = os.pipe2(os.O_CLOEXEC)
        log = self.directory / f"{name or node}.log"
        with open(readable, "rb", buffering=0) as answer, log.open("ab") as errors, open(os.devnull, "rb") as nothing:
            try:
                process = self.spawn(node, argv, name=name, files=(nothing.fileno(), writable, errors.fileno()))
            finally:
                os.close(writable)
            if select.select([answer], [], [], timeout)[0] and answer.read(64):
                return process
        process.close()
        raise LocalError(f"{' '.join(argv[1:4])} in {node} did not get ready:\n{tail(log)}")

    def serve_targets(self) -> None:
        """Start the servers that `fetch`, `stream` and `udp` talk to, on every target."""
        for target in self.topology.target_names:
            self.start_ready(target, [sys.executable, "-m", "rvpn.lab.traffic", "serve"], f"{target}-server")

    def _ask(self, request: wire.Message) -> wire.Message:
        return wire.ask(self.directory / holder.SOCKET, request)

    def _end_detached(self) -> None:
        try:
            connection = wire.connect(self.directory / holder.SOCKET, timeout=END_TIME)
        except OSError:
            return
        with connection:
            pid = int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), sys.byteorder)
            gone = os.pidfd_open(pid)
            try:
                wire.send(connection, {"do": "end"})
                if not select.select([gone], [], [], END_TIME)[0]:
                    os.kill(pid, SIGKILL)
            finally:
                os.close(gone)


def tail(path: Path, lines: int = 20) -> str:
    """Return the last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"{path}: {error.strerror}"


def default_directory() -> Path:
    """
    Return the directory of the laboratory that `rvpn lab up` makes, one per user; make it if it is missing.

    Raises `LocalError` if somebody else could write there.
    """
    directory = Path(tempfile.gettempdir(), f"rvpn-lab-{os.getuid()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not directory.is_dir() or directory.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise LocalError(f"{directory}: expected a directory of yours with mode 0700; remove it")
    return directory


def _start_holder(topology: Topology, directory: Path, detached: bool) -> "subprocess.Popen[bytes]":
    """Start the holder and return when the network is ready."""
    argv = [*requirements.unshare_command(), sys.executable, "-m", "rvpn.lab.holder", str(directory)]
    argv += map(str, (topology.family, topology.gateways, topology.targets))
    log = directory / "holder.log"
    with log.open("wb") as errors:
        parent = subprocess.Popen(
            [*argv, "--detached"] if detached else argv,
            stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    assert parent.stdout is not None
    with parent.stdout:
        if select.select([parent.stdout], [], [], START_TIME)[0] and parent.stdout.readline():
            return parent
    parent.kill()
    parent.wait()
    raise LocalError(f"the laboratory did not start:\n{tail(log)}")


def _end_owned(parent: "subprocess.Popen[bytes]") -> None:
    """End a holder by closing its standard input; `unshare` has ended when the namespaces have."""
    if parent.stdin is not None:
        parent.stdin.close()
    try:
        parent.wait(END_TIME)
    except subprocess.TimeoutExpired:
        parent.kill()
        parent.wait()
