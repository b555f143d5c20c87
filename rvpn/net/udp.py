"""
The UDP sockets of a node: outer datagrams from the network, and to it.

In: the reactor wakes `UDPPort.doRead`, which reads up to `READS_PER_WAKEUP` datagrams, one at a time, into
the caller's `DatagramBatch`, sets its path and gives it to `DatagramReceiver.batchReceived`. Out:
`UDPPorts.send` picks the socket for the batch's path, and that sends each datagram from the path's local
address: a peer is answered from the address that it spoke to, which `twisted.internet.udp.Port` cannot do.

ICMP errors: with IP_RECVERR the kernel keeps them in the socket's error queue and tells of them by EPOLLERR
alone, on which Twisted's reactors drop a descriptor for good. So each socket sits in an epoll set of its own,
and the reactor watches that set's descriptor, which only ever becomes readable. An error becomes a
`PathError`.

Path MTU: IP_MTU_DISCOVER and IPV6_MTU_DISCOVER are WANT. The kernel sets DF on what fits the path MTU that it
knows (RFC 1191), learns a smaller one from ICMP, as we do by `PathError`, and fragments what does not fit.
"""

import errno
import pathlib
import select
import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rvpn.errors import LocalError
from rvpn.interfaces import DatagramBatch, Endpoint, IPAddress, Path
from rvpn.memo import Memo
from rvpn.net.udpsocket import (
    DATAGRAM_ANCILLARY,
    ERROR_ANCILLARY,
    QUOTE,
    Ancillary,
    PathError,
    from_address,
    local_address,
    open_socket,
    path_error,
)

READS_PER_WAKEUP = 16
#: Paths whose form for the kernel is kept: half a MiB. Forged sources cost time, not memory.
REMEMBERED_PATHS = 512
#: Where to listen if the policy does not say: everywhere.
EVERYWHERE: Sequence[IPAddress] = (IPv4Address(0), IPv6Address(0))
#: There if the kernel has IPv6.
IF_INET6 = pathlib.Path("/proc/net/if_inet6")

_log = Logger()


class DatagramReceiver(Protocol):
    """Who takes what comes from the network. Its exceptions are logged and end nothing."""

    def batchReceived(self, batch: DatagramBatch) -> None:
        """Take datagrams of one path. The batch is reused after the return."""

    def pathErrorReceived(self, error: PathError) -> None:
        """Learn that the network or our kernel refused a datagram. Anybody on the path can make this up."""


@implementer(IReadDescriptor)
class UDPPort:
    """
    One UDP socket in the reactor: bound after construction, reading after `startReading`.

    `port` 0 lets the kernel choose, and the attribute tells. `mark` is for SO_MARK. Datagrams longer than the
    capacity of `batch` arrive cut. `send_errno` says why the last failed send failed. Raises `LocalError` if
    the address cannot be used.
    """

    def __init__(
        self,
        address: IPAddress,
        port: int,
        protocol: DatagramReceiver,
        reactor: IReactorFDSet,
        batch: DatagramBatch,
        mark: int | None = None,
    ) -> None:
        self._socket = open_socket(Endpoint(address, port), mark)
        self._events = select.epoll()
        self._events.register(self._socket, select.EPOLLIN)
        self.address = address
        self.port: int = self._socket.getsockname()[1]
        self.send_errno = 0
        self._protocol = protocol
        self._reactor = reactor
        self._batch = batch
        self._origins = Memo(_origin, REMEMBERED_PATHS)
        self._targets = Memo(_target, REMEMBERED_PATHS)

    def startReading(self) -> None:
        """Begin to deliver datagrams and errors."""
        self._reactor.addReader(self)

    def stopReading(self) -> None:
        """Leave datagrams to wait in the kernel, which drops what its buffer cannot hold."""
        self._reactor.removeReader(self)

    def close(self) -> None:
        """Stop reading and close the socket. May be called again."""
        if not self._events.closed:
            self.stopReading()
            self._events.close()
            self._socket.close()

    def send(self, batch: DatagramBatch) -> bool:
        """Send all datagrams of `batch` to its path; False, with `send_errno` set, if any was not taken."""
        assert batch.path is not None
        taken = True
        for start in range(0, batch.length, batch.size):
            taken &= self.sendDatagram(batch.view[start : min(start + batch.size, batch.length)], batch.path)
        return taken

    def sendDatagram(self, datagram: bytes | memoryview, path: Path) -> bool:
        """Send one datagram; False, with `send_errno` set, if the kernel did not take it. Never raises."""
        ancillary, remote = self._targets[path]
        # The error of an earlier datagram makes the next send fail, once, whoever that one is for.
        for _ in range(2):
            try:
                self._socket.sendmsg([datagram], ancillary, 0, remote)
            except OSError as error:
                self.send_errno = error.errno or 0
            else:
                return True
        return False

    def doRead(self) -> None:
        """Deliver the errors and datagrams that wait, at most `READS_PER_WAKEUP` of each."""
        for _, events in self._events.poll(0, 1):
            if events & select.EPOLLERR:
                self._read_errors()
            if events & select.EPOLLIN:
                self._read_datagrams()

    def _read_datagrams(self) -> None:
        batch = self._batch
        for _ in range(READS_PER_WAKEUP):
            if self._events.closed:  # by the receiver
                return
            try:
                length, ancillary, _, source = self._socket.recvmsg_into([batch.buffer], DATAGRAM_ANCILLARY)
            except BlockingIOError:
                return
            except OSError:  # the error of an earlier datagram; its details come by the error queue
                continue
            batch.path = self._origins[source, *ancillary]
            batch.size = batch.length = length
            batch.count = 1
            try:
                self._protocol.batchReceived(batch)
            except Exception:
                _log.failure("a datagram from {path.remote} could not be handled", path=batch.path)

    def _read_errors(self) -> None:
        # Reading it clears it: an error for which the kernel had no memory to queue would wake us for ever.
        self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        for _ in range(READS_PER_WAKEUP):
            if self._events.closed:
                return
            try:
                quote, ancillary, _, source = self._socket.recvmsg(
                    QUOTE, ERROR_ANCILLARY, socket.MSG_ERRQUEUE
                )
            except OSError:
                break
            error = path_error(quote, ancillary, Endpoint(ip_address(source[0]), source[1]))
            if error is None:
                continue
            try:
                self._protocol.pathErrorReceived(error)
            except Exception:
                _log.failure("an error about {error.remote} could not be handled", error=error)

    def connectionLost(self, reason: Failure) -> None:
        """Close: the reactor is about to end, which is the only cause there is."""
        self.close()

    def fileno(self) -> int:
        """Return the descriptor of the epoll set for the reactor."""
        return self._events.fileno()

    def logPrefix(self) -> str:
        """Return the name in log lines."""
        return f"UDP {Endpoint(self.address, self.port)}"


class UDPPorts:
    """
    All the listening sockets of a node, and which of them speaks to whom.

    `addresses` come from the policy; where it names none the node listens everywhere, without IPv6 if the
    kernel has none. `port_at` makes the `UDPPort` for one of them. If it raises `LocalError`, no socket stays
    open.
    """

    def __init__(self, addresses: Sequence[IPAddress], port_at: Callable[[IPAddress], UDPPort]) -> None:
        self.ports: list[UDPPort] = []
        self.send_errno = 0
        try:
            for address in addresses or _everywhere():
                self.ports.append(port_at(address))
        except LocalError:
            self.close()
            raise
        self._by_address: dict[IPAddress | None, UDPPort] = {port.address: port for port in self.ports}
        # The socket without an address of its own, else the last of its family, takes what no other does.
        ranked = sorted(self.ports, key=lambda port: port.address.is_unspecified)
        self._by_version = {port.address.version: port for port in ranked}

    def startReading(self) -> None:
        """Begin to deliver datagrams and errors."""
        for port in self.ports:
            port.startReading()

    def stopReading(self) -> None:
        """Leave datagrams to wait in the kernel."""
        for port in self.ports:
            port.stopReading()

    def drain(self) -> None:
        """Deliver now what waits, as far as one wake-up would."""
        for port in self.ports:
            port.doRead()

    def close(self) -> None:
        """Close all sockets. May be called again."""
        for port in self.ports:
            port.close()

    def send(self, batch: DatagramBatch) -> bool:
        """Send all datagrams of `batch` to its path; False, with `send_errno` set, if any was not taken."""
        assert batch.path is not None
        port = self._port_for(batch.path)
        return port is not None and self._outcome(port, port.send(batch))

    def sendDatagram(self, datagram: bytes, path: Path) -> bool:
        """Send one datagram; False, with `send_errno` set, if the kernel did not take it. Never raises."""
        port = self._port_for(path)
        return port is not None and self._outcome(port, port.sendDatagram(datagram, path))

    def _port_for(self, path: Path) -> UDPPort | None:
        port = self._by_address.get(path.local) or self._by_version.get(path.remote.address.version)
        if port is None:
            self.send_errno = errno.EAFNOSUPPORT
        return port

    def _outcome(self, port: UDPPort, taken: bool) -> bool:
        if not taken:
            self.send_errno = port.send_errno
        return taken


def _target(path: Path) -> tuple[Ancillary, tuple[str, int]]:
    """Return what `sendmsg` wants to know of a path."""
    return from_address(path.local), (str(path.remote.address), path.remote.port)


def _origin(told: tuple[Any, ...]) -> Path:
    """Return the path of a datagram, of which `recvmsg` told the source and the ancillary data."""
    source, *ancillary = told
    return Path(Endpoint(ip_address(source[0]), source[1]), local_address(ancillary))


def _everywhere() -> Sequence[IPAddress]:
    if IF_INET6.exists():
        return EVERYWHERE
    _log.info("the kernel has no IPv6: listening on IPv4 alone")
    return EVERYWHERE[:1]
