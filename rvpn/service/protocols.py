"""
The two Twisted protocols of a node, over one UDP port (DESIGN 3): all that it says to its peers, and hears.

    datagram -> TunnelProtocol: the first four bytes are zero -> KeyExchangeProtocol -> node.key_exchange
                                                        else -> node.inbound -> inner packets -> TUN device
    inner packet from the TUN device -> TunnelProtocol.seal -> node.outbound -> UDP
    `Send`, of a key exchange or of session control -> TunnelProtocol.send -> UDP

Their transport is a `UDPPorts`. The node calculates; its shell, the service, performs what it asks for.
"""

import errno
from collections.abc import Callable, Iterable
from typing import Protocol

from twisted.internet.protocol import AbstractDatagramProtocol

from rvpn.constants import KEY_EXCHANGE_MARKER
from rvpn.errors import DropReason
from rvpn.interfaces import Action, DatagramBatch, Node, PacketBatch, Path, Send
from rvpn.net.udp import UDPPorts
from rvpn.net.udpsocket import PathError

#: Bytes of a batch's buffer: what one system call brings at most, and the overhead of sealing it.
BATCH_CAPACITY = 1 << 17
#: What the kernel says where it knows no way to a peer (R3).
_NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


class Shell(Protocol):
    """What the protocols need of a `rvpn.service.tunnel.TunnelService`."""

    @property
    def node(self) -> Node:
        """The calculation."""

    def perform(self, calculation: Callable[[float], Iterable[Action]]) -> None:
        """Run a calculation of the node now, and carry out what it asks for."""

    def deliver(self, packet: memoryview) -> None:
        """Give an inner packet to the kernel."""


class KeyExchangeProtocol(AbstractDatagramProtocol):
    """The authenticated key exchange: a datagram is a fragment of a token, or speaks of one (DESIGN 4)."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def fragmentReceived(self, datagram: bytes, path: Path) -> None:
        """Take one datagram that begins with the marker."""
        self._shell.perform(lambda now: self._shell.node.key_exchange(datagram, path, now))


class TunnelProtocol(AbstractDatagramProtocol):
    """The datagram tunnel: ESP and session control, and the way to the key exchange beside it."""

    noisy = False
    transport: UDPPorts  # type: ignore[assignment]  # no IUDPTransport: what it sends goes along a path

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._key_exchange = KeyExchangeProtocol(shell)
        self._sealed = DatagramBatch(BATCH_CAPACITY)
        self._opened = PacketBatch(BATCH_CAPACITY)

    def batchReceived(self, batch: DatagramBatch) -> None:
        """Take the datagram of a batch of one."""
        if batch.buffer.startswith(KEY_EXCHANGE_MARKER) and batch.length >= len(KEY_EXCHANGE_MARKER):
            assert batch.path is not None
            self._key_exchange.fragmentReceived(bytes(batch.view[: batch.length]), batch.path)
        else:
            self._shell.perform(lambda now: self._open(batch, now))

    def _open(self, batch: DatagramBatch, now: float) -> Iterable[Action]:
        opened = self._opened
        opened.clear()
        actions = self._shell.node.inbound(batch, opened, now)
        for start, end in opened.spans:
            self._shell.deliver(opened.view[start:end])
        return actions

    def pathErrorReceived(self, error: PathError) -> None:
        """Take what the network says of a datagram of ours."""
        node, mtu = self._shell.node, error.mtu
        if mtu is None:
            self._shell.perform(lambda now: node.refused(error.remote, error.quote, now))
        else:
            self._shell.perform(lambda now: node.path_mtu(error.remote, mtu, now))

    def seal(self, packet: memoryview, now: float) -> Iterable[Action]:
        """Send an inner packet through the tunnel, and return what else the node makes of it."""
        sealed = self._sealed
        sealed.clear()
        actions = self._shell.node.outbound(packet, sealed, now)
        if sealed.count and not self.transport.send(sealed):
            self._shell.node.drop(DropReason.SEND_FAILED)
        return actions

    def send(self, action: Send, now: float) -> Iterable[Action]:
        """Send a datagram, and return what the node makes of a failure (R3)."""
        if self.transport.sendDatagram(action.datagram, action.path):
            return ()
        self._shell.node.drop(DropReason.SEND_FAILED)
        if self.transport.send_errno not in _NO_WAY:
            return ()
        return self._shell.node.unreachable(action.path.remote, now)
