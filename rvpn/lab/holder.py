"""
The process that holds the laboratory: PID 1 of its PID namespace, parent of every process in every node.

`rvpn.lab.lab` starts it in new user (without root), mount, network and PID namespaces. It builds the network,
says "ready", and then serves requests at `holder.sock` in the laboratory's directory. When it ends, however
that happens, the kernel kills every process in its PID namespace, and the network namespaces go with their
last user: nothing is mounted outside, named or left.

    {"do": "start", ...} and three descriptors -> {"pid": n} ... {"exit": code}
    {"do": "status" | "signal" | "network" | "end", ...} -> one answer, or {"error": "..."}

A process without a name belongs to the connection that started it and dies with it; a named one (a service)
stays.
"""

import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

from rvpn.arguments import Parser
from rvpn.lab import wire
from rvpn.lab.namespaces import mount_tmpfs
from rvpn.lab.network import Network
from rvpn.lab.topology import Topology

SOCKET = "holder.sock"


@dataclass(slots=True)
class Child:
    """A process in a node, leader of its own session, and the connection that asked for it."""

    name: str | None
    node: str
    process: subprocess.Popen[bytes]
    connection: socket.socket

    def signal(self, number: int) -> None:
        """Signal the whole session's process group."""
        os.killpg(self.process.pid, number)


class Holder:
    """Serves requests for one network until it is told to end."""

    def __init__(self, network: Network, listener: socket.socket) -> None:
        self._network = network
        self._children: dict[int, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._ended = False
        self._requests: dict[str, Callable[..., wire.Message]] = {
            "status": self._status,
            "signal": self._signal,
            "network": self._change_network,
            "end": self.end,
        }
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._accept(listener))

    def watch(self, descriptor: int, read: Callable[[], object]) -> None:
        """Call `read` whenever `descriptor` is readable."""
        self._selector.register(descriptor, selectors.EVENT_READ, read)

    def serve(self) -> None:
        """Serve until `end`."""
        while not self._ended:
            for key, _ in self._selector.select():
                key.data()

    def end(self) -> wire.Message:
        """Stop serving; the process then exits, and with it everything in the laboratory."""
        self._ended = True
        return {}

    def kill_all(self) -> None:
        """Kill every process that was started here."""
        for child in self._children.values():
            with suppress(ProcessLookupError):
                child.signal(signal.SIGKILL)

    def reap(self) -> None:
        """Collect every process that ended, orphans too, and tell who started it."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                child.process.returncode = code = os.waitstatus_to_exitcode(status)
                self._answer(child.connection, {"exit": code})

    # --- Connections -----------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(connection))

    def _read(self, connection: socket.socket) -> None:
        try:
            request, descriptors = wire.receive(connection)
        except BlockingIOError:
            return
        except (OSError, EOFError, ValueError):
            self._close(connection)
            return
        try:
            answer = self._carry_out(connection, request, descriptors)
        except (OSError, KeyError, ValueError, TypeError, NetlinkError) as error:
            answer = {"error": _sentence(error)}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._answer(connection, answer)

    def _carry_out(
        self, connection: socket.socket, request: wire.Message, descriptors: list[int]
    ) -> wire.Message:
        what = request.pop("do")
        if what == "start":
            return self._start(connection, descriptors, **request)
        return self._requests[what](**request)

    def _answer(self, connection: socket.socket, answer: wire.Message) -> None:
        try:
            wire.send(connection, answer)
        except OSError:
            self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        """Close a connection, and kill the process that belongs to it."""
        for child in self._children.values():
            if child.connection is connection and child.name is None:
                with suppress(ProcessLookupError):
                    child.signal(signal.SIGKILL)
        if connection.fileno() != -1:
            self._selector.unregister(connection)
            connection.close()

    # --- Requests --------------------------------------------------------------------------------

    def _start(
        self,
        connection: socket.socket,
        descriptors: list[int],
        node: str,
        argv: list[str],
        name: str | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
    ) -> wire.Message:
        if name is not None and any(child.name == name for child in self._children.values()):
            raise ValueError(f"{name} runs already")
        if node not in self._network.nodes:
            raise ValueError(f"no node {node}; the nodes are {', '.join(self._network.nodes)}")
        stdin, stdout, stderr = descriptors
        with self._network.inside(node):
            process = subprocess.Popen(
                argv, stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, env=env, start_new_session=True
            )
        self._children[process.pid] = Child(name, node, process, connection)
        return {"pid": process.pid}

    def _signal(self, process: int | str, number: int) -> wire.Message:
        self._find(process).signal(number)
        return {}

    def _find(self, process: int | str) -> Child:
        """Return the running process with that name or, inside the laboratory, that PID."""
        for pid, child in self._children.items():
            if process in (pid, child.name):
                return child
        raise ValueError(f"{process} is not running")

    def _change_network(self, change: str, arguments: list[object]) -> wire.Message:
        self._network.changes[change](*arguments)
        return {}

    def _status(self) -> wire.Message:
        topology = self._network.topology
        return {
            "topology": {
                "family": topology.family,
                "gateways": topology.gateways,
                "targets": topology.targets,
                "proxy_arp": topology.proxy_arp,
            },
            "network": self._network.state(),
            "processes": {
                child.name: {"node": child.node, "pid": pid, "state": _state(pid)}
                for pid, child in self._children.items()
                if child.name is not None
            },
        }


def _state(pid: int) -> str:
    """Return `running` or `frozen`, from the state letter behind the command's closing parenthesis."""
    letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "frozen" if letter == "T" else "running"


def _sentence(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"unknown: {error}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _watch_children(holder: Holder) -> None:
    """Have `reap` called from the loop, not from inside a signal handler."""
    readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)

    def drain() -> None:
        os.read(readable, 4096)
        holder.reap()

    holder.watch(readable, drain)


def main() -> None:
    """Build the network, say that it is ready, serve."""
    parser = Parser(prog="python -m rvpn.lab.holder")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    for number in ("family", "gateways", "targets"):
        parser.add_argument(number, type=int, metavar=number.upper())
    parser.add_argument("--proxy-arp", action="store_true", help="inner addresses on the LAN")
    parser.add_argument("--detached", action="store_true", help="outlive the process that started this one")
    parser.add_argument("--temporary", action="store_true", help="remove the directory in the end")
    chosen = parser.parse_args()
    try:
        topology = Topology(chosen.family, chosen.gateways, chosen.targets, chosen.proxy_arp)
    except ValueError as error:
        parser.error(str(error))
    os.umask(0o077)
    mount_tmpfs("/run")
    network = Network(topology)
    with wire.listen(chosen.directory / SOCKET) as listener:
        holder = Holder(network, listener)
        signal.signal(signal.SIGTERM, lambda _number, _frame: holder.end())
        _watch_children(holder)
        if not chosen.detached:
            # Nothing is ever written to standard input: it is readable when its writer has died.
            holder.watch(sys.stdin.fileno(), holder.end)
        with suppress(BrokenPipeError):  # whoever started it died before it was ready
            wire.say_ready()
            holder.serve()
    if chosen.temporary:
        # Its owner may have died without a chance to do it.
        holder.kill_all()
        shutil.rmtree(chosen.directory, ignore_errors=True)


if __name__ == "__main__":
    main()
