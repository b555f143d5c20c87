"""
The UDP sockets of a node: outer datagrams from the network, and to it.

In: the reactor wakes `UDPPort.doRead`, which reads until nothing is left, but at most `READS_PER_WAKEUP`
times and some `BYTES_PER_WAKEUP`, into the caller's `DatagramBatch`, and gives it to
`DatagramReceiver.batchReceived`. With UDP_GRO one read brings a run of datagrams of one size; without it, the
runs are made here. Out: `UDPPorts.send` picks the socket for each run's path, and that sends it from the
path's local address (`UDPSender`): a peer is answered from the address that it spoke to, which
`twisted.internet.udp.Port` cannot do.

A full socket: what it has no room for stays in the batch, and `DatagramReceiver.sendingResumed` tells when
there is room. The protocol leaves the TUN device alone meanwhile, so that senders wait and nothing is lost.

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
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rvpn.constants import RUN_BYTES, RUN_DATAGRAMS
from rvpn.errors import LocalError
from rvpn.interfaces import DatagramBatch, Endpoint, IPAddress, Path, Run
from rvpn.memo import Memo
from rvpn.net import alarm
from rvpn.net.offloads import IN_USE, Offloads
from rvpn.net.reactor import LITTLE, PacketReader
from rvpn.net.udpsend import REMEMBERED_PATHS, UDPSender, number_of
from rvpn.net.udpsocket import (
    DATAGRAM_ANCILLARY,
    ERROR_ANCILLARY,
    QUOTE,
    Ancillary,
    PathError,
    control_socket,
    local_address,
    path_error,
    probe,
    size_of_each,
)

#: A wake-up ends after so many reads, or after the one that brings the batch to so many bytes: a
#: millisecond's work.
READS_PER_WAKEUP, BYTES_PER_WAKEUP = 64, 1 << 18
#: Bytes of the batch that a port reads into: the longest datagram, or run, behind all others.
BATCH_CAPACITY = BYTES_PER_WAKEUP + (1 << 16)
#: Behind several datagrams that came at once the next read begins at a multiple of so many bytes.
ALIGNMENT = 1 << 12
#: Seconds until a full queue of a network card is tried again: unlike a socket it does not tell.
RETRY_INTERVAL = 0.001
#: Where to listen if the policy does not say: everywhere.
EVERYWHERE: Sequence[IPAddress] = (IPv4Address(0), IPv6Address(0))
#: There if the kernel has IPv6.
IF_INET6 = pathlib.Path("/proc/net/if_inet6")

_log = Logger()


class DatagramReceiver(Protocol):
    """Who takes what comes from the network. Its exceptions are logged and end nothing."""

    def batchReceived(self, batch: DatagramBatch) -> None:
        """Take datagrams. The batch is reused after the return."""

    def pathErrorReceived(self, error: PathError) -> None:
        """Learn that the network or our kernel refused a datagram. Anybody on the path can make this up."""

    def sendingResumed(self) -> None:
        """Learn that a socket that was full has room: what stayed in a batch can be sent."""


@implementer(IReadDescriptor)
class UDPPort(PacketReader):
    """
    One UDP socket (`open_socket`) in the reactor, which owns it: reading after `startReading`.

    `batch` has BATCH_CAPACITY. `address` and `port` are those it is bound to, `name` says so to people,
    `offloads` tells which are in use.
    """

    def __init__(
        self,
        opened: socket.socket,
        protocol: DatagramReceiver,
        reactor: IReactorFDSet,
        batch: DatagramBatch,
        offload: bool = True,
    ) -> None:
        self._socket = opened
        self.offloads: Offloads = probe(self._socket, offload)
        self.sender = UDPSender(self._socket, self.offloads["UDP_SEGMENT"] == IN_USE, self._filled)
        self._events = select.epoll()
        self._events.register(self._socket, select.EPOLLIN)
        host, self.port = opened.getsockname()[:2]
        self.address = ip_address(host)
        self.name = f"UDP {Endpoint(self.address, self.port)}"
        self._retry = alarm.Alarm(self._resume, reactor)
        self._protocol = protocol
        self._reactor = reactor
        self._batch = batch
        self._offload = offload
        self._origins = Memo(_origin, REMEMBERED_PATHS)
        # What was told with the datagrams before: most often it is the same, and addresses are slow to hash.
        self._source: tuple[Any, ...] = ()
        self._ancillary: Ancillary = []
        self._path: Path
        self._size_of_each = 0  # of a run; 0 for a datagram alone

    def control(self) -> "UDPPort | None":
        """Return a port for what must not wait behind the packets of this one, if the kernel has that."""
        beside = control_socket(self._socket)
        if beside is None:
            return None
        return UDPPort(beside, self._protocol, self._reactor, self._batch, self._offload)

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
            self._retry.close()
            self._events.close()
            self._socket.close()

    def doRead(self) -> None:
        """Deliver what waits, within the bounds of a wake-up, and send what waited if there is room."""
        batch, emptied = self._batch, self.single
        batch.clear()
        for _ in range(1 if self.single else READS_PER_WAKEUP):
            try:
                told = self._socket.recvmsg_into([batch.view[batch.length :]], DATAGRAM_ANCILLARY)
            except BlockingIOError:
                emptied = True
                break
            except OSError:  # the error of an earlier datagram; its details come by the error queue
                continue
            self._add(*told)
            if batch.length >= BYTES_PER_WAKEUP:
                break
        self.bulk = batch.length > LITTLE
        if batch.runs:
            try:
                self._protocol.batchReceived(batch)
            except Exception:
                _log.failure("datagrams to {port} could not be handled", port=self.name)
        else:
            emptied = False
        # As long as there are datagrams nothing else is asked for: an error among them wakes us again.
        if not emptied or self.sender.full:
            self._look_further()

    def _look_further(self) -> None:
        """Read errors, and go on sending if there is room, unless the receiver has closed the port."""
        if self._events.closed:
            return
        for _, events in self._events.poll(0, 1):
            if events & select.EPOLLERR:
                self._read_errors()
            if events & select.EPOLLOUT and not self._events.closed:
                self._resume()

    def _add(self, length: int, ancillary: Ancillary, _flags: int, source: tuple[Any, ...]) -> None:
        """Take what was read behind the batch into it: as a run, or to the last one if it fits there."""
        if source != self._source or ancillary != self._ancillary:
            self._hear_from(source, ancillary)
        path, size = self._path, self._size_of_each or length
        runs = self._batch.runs
        behind = runs and runs[-1].end == self._batch.length
        if behind and size == length and _continues(runs[-1], path, length):
            self._batch.length += length
            runs[-1].end += length
        elif length:  # an empty datagram means nothing
            self._batch.add(path, length, size)
            if length > size:
                # The next begins where others did, for which there are slots (rvpn.esp.codec).
                self._batch.length = -(-self._batch.length // ALIGNMENT) * ALIGNMENT

    def _hear_from(self, source: tuple[Any, ...], ancillary: Ancillary) -> None:
        """Find out what `recvmsg` told of a datagram, or of a run: its path, and the size of each."""
        size, sent_to = 0, None
        for entry in ancillary:
            if entry[0] == socket.IPPROTO_UDP:
                size = size_of_each(entry[2])
            else:
                sent_to = entry
        self._path, self._size_of_each = self._origins[source, sent_to], size
        self._source, self._ancillary = source, ancillary

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

    def _filled(self, failure: int) -> None:
        if failure == errno.EAGAIN:
            self._events.modify(self._socket, select.EPOLLIN | select.EPOLLOUT)
        else:
            self._retry.set(alarm.now() + RETRY_INTERVAL)

    def _resume(self) -> None:
        self._events.modify(self._socket, select.EPOLLIN)
        if not self.sender.resume():
            return
        try:
            self._protocol.sendingResumed()
        except Exception:
            _log.failure("what waited for {port} could not be sent", port=self.name)

    def connectionLost(self, reason: Failure) -> None:
        """Close: the reactor is about to end, which is the only cause there is."""
        self.close()

    def fileno(self) -> int:
        """Return the descriptor of the epoll set for the reactor."""
        return self._events.fileno()

    def logPrefix(self) -> str:
        """Return the name in log lines."""
        return self.name


class UDPPorts:
    """
    All the listening sockets of a node, and which of them speaks to whom.

    `addresses` come from the policy; where it names none the node listens everywhere, without IPv6 if the
    kernel has none. `port_at` makes the `UDPPort` for one of them. If it raises `LocalError`, no socket stays
    open. Key exchange and session control have a socket of their own beside each, so that they wait for no
    packets, neither out nor in. `send_errno` says why the last datagram that was refused was refused.
    """

    def __init__(self, addresses: Sequence[IPAddress], port_at: Callable[[IPAddress], UDPPort]) -> None:
        self.ports: list[UDPPort] = []
        self._control: dict[UDPPort, UDPPort] = {}
        self.send_errno = 0
        try:
            for address in addresses or _everywhere():
                self.ports.append(port_at(address))
        except LocalError:
            self.close()
            raise
        self._control = {port: port.control() or port for port in self.ports}
        self._by_address: dict[IPAddress | None, UDPPort] = {port.address: port for port in self.ports}
        # The socket without an address of its own, else the last of its family, takes what no other does.
        ranked = sorted(self.ports, key=lambda port: port.address.is_unspecified)
        self._by_version = {port.address.version: port for port in ranked}
        # Most often one path follows itself, and addresses are slow to hash.
        self._path: Path | None = None
        self._port: UDPPort | None = None

    @property
    def offloads(self) -> dict[str, Offloads]:
        """Which offloads are in use, by the name of each socket."""
        return {port.name: port.offloads for port in self.ports}

    @property
    def refusals(self) -> Counter[str]:
        """What the kernel would not take, by kind and errno, of all sockets."""
        refusals: Counter[str] = Counter()
        for port in self._sockets:
            refusals += port.sender.refusals
        return refusals

    @property
    def _sockets(self) -> Iterable[UDPPort]:
        return dict.fromkeys((*self._control.values(), *self.ports))

    def startReading(self) -> None:
        """Begin to deliver datagrams and errors."""
        for port in self._sockets:
            port.startReading()

    def stopReading(self) -> None:
        """Leave datagrams to wait in the kernel."""
        for port in self._sockets:
            port.stopReading()

    def drain(self) -> None:
        """Deliver now what waits, as far as one wake-up would."""
        for port in self._sockets:
            port.single = False
            port.doRead()

    def close(self) -> None:
        """Close all sockets. May be called again."""
        for port in self._sockets:
            port.close()

    def send(self, batch: DatagramBatch) -> int:
        """
        Send the runs of `batch`, each to its path; return how many datagrams the kernel refused.

        What was sent or refused leaves `batch.runs`. If some are left a socket is full, and `sendingResumed`
        of the protocol will be called.
        """
        refused = 0
        for number, run in enumerate(batch.runs):
            port = self._port if run.path is self._path else self._port_for(run.path)
            if port is None:
                refused += number_of(run)
                continue
            refused += port.sender.send_run(batch.view, run)
            self.send_errno = port.sender.failure
            if run.start < run.end:
                del batch.runs[:number]
                return refused
        batch.runs.clear()
        return refused

    def sendDatagram(self, datagram: bytes, path: Path) -> bool:
        """
        Send one datagram, or keep it until a full socket has room, when it goes first. Never raises.

        False, with `send_errno` set, if the kernel refused it, or too many wait.
        """
        port = self._port_for(path)
        if port is None:
            return False
        sender = self._control[port].sender
        taken = sender.send(datagram, path)
        self.send_errno = sender.failure
        return taken

    def _port_for(self, path: Path) -> UDPPort | None:
        port = self._by_address.get(path.local) or self._by_version.get(path.remote.address.version)
        self._path, self._port = path, port
        if port is None:
            self.send_errno = errno.EAFNOSUPPORT
        return port


def _origin(told: tuple[Any, ...]) -> Path:
    """Return the path of a datagram, of which `recvmsg` told the source and our address."""
    source, sent_to = told
    return Path(Endpoint(ip_address(source[0]), source[1]), local_address([sent_to] if sent_to else []))


def _continues(run: Run, path: Path, length: int) -> bool:
    """Whether a datagram can be the next one of a run."""
    sofar = run.end - run.start
    return (
        run.path is path
        and length <= run.size
        and not sofar % run.size
        and sofar + length <= RUN_BYTES
        and sofar < run.size * RUN_DATAGRAMS
    )


def _everywhere() -> Sequence[IPAddress]:
    if IF_INET6.exists():
        return EVERYWHERE
    _log.info("the kernel has no IPv6: listening on IPv4 alone")
    return EVERYWHERE[:1]
