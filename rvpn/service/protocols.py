"""
The two Twisted protocols of a node, over one UDP port (DESIGN 3): all that it says to its peers, and hears.

    datagrams -> TunnelProtocol -> node.inbound -> inner packets -> TUN device
                                                -> set aside -> KeyExchangeProtocol -> node.key_exchange
    inner packets from the TUN device -> TunnelProtocol.seal -> node.outbound -> UDP
    `Send`, of a key exchange or of session control -> TunnelProtocol.send -> UDP

Their transport is a `UDPPorts`. The node calculates; its shell, the service, performs what it asks for. While
a socket is full, what is sealed and what is yet to be sealed stay where they are, and the shell does not read
the TUN device: its queue fills, and the hosts behind it slow down instead of losing packets.
"""

import errno
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVarTuple

from twisted.internet.protocol import AbstractDatagramProtocol

from rvpn.constants import BATCH_CAPACITY
from rvpn.errors import DropReason
from rvpn.interfaces import Action, DatagramBatch, Node, PacketBatch, Path, Send
from rvpn.net.udp import UDPPorts
from rvpn.net.udpsocket import PathError

Ts = TypeVarTuple("Ts")

#: What the kernel says where it knows no way to a peer (R3).
_NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


class Shell(Protocol):
    """What the protocols need of a `rvpn.service.tunnel.TunnelService`."""

    @property
    def node(self) -> Node:
        """The calculation."""

    def perform(self, calculation: Callable[[*Ts, float], Iterable[Action]], *arguments: *Ts) -> None:
        """Run a calculation of the node with `arguments` now, and carry out what it asks for."""

    def deliver(self, packets: PacketBatch) -> None:
        """Give inner packets to the kernel."""

    def hold(self) -> None:
        """Read no more inner packets from the kernel."""

    def release(self) -> None:
        """Read inner packets again."""


class KeyExchangeProtocol(AbstractDatagramProtocol):
    """The authenticated key exchange: a datagram is a fragment of a token, or speaks of one (DESIGN 4)."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def fragmentReceived(self, datagram: bytes, path: Path) -> None:
        """Take one datagram that begins with the marker."""
        self._shell.perform(self._shell.node.key_exchange, datagram, path)


class TunnelProtocol(AbstractDatagramProtocol):
    """The datagram tunnel: ESP and session control, and the way to the key exchange beside it."""

    noisy = False
    transport: UDPPorts  # type: ignore[assignment]  # no IUDPTransport: what it sends goes along a path

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._key_exchange = KeyExchangeProtocol(shell)
        self._sealed = DatagramBatch(BATCH_CAPACITY)
        self._opened = PacketBatch(BATCH_CAPACITY)
        self._held: PacketBatch | None = None

    def batchReceived(self, batch: DatagramBatch) -> None:
        """Take the datagrams of a wake-up."""
        self._shell.perform(self._open, batch)
        for datagram, path in batch.set_aside:
            self._key_exchange.fragmentReceived(datagram, path)

    def _open(self, batch: DatagramBatch, now: float) -> Iterable[Action]:
        opened = self._opened
        opened.clear()
        actions = self._shell.node.inbound(batch, opened, now)
        if opened.spans:
            self._shell.deliver(opened)
        return actions

    def pathErrorReceived(self, error: PathError) -> None:
        """Take what the network says of a datagram of ours."""
        node, mtu = self._shell.node, error.mtu
        if mtu is None:
            self._shell.perform(node.refused, error.remote, error.quote)
        else:
            self._shell.perform(node.path_mtu, error.remote, mtu)

    def seal(self, packets: PacketBatch, now: float) -> Iterable[Action]:
        """Send inner packets through the tunnel, and return what else the node makes of them."""
        sealed = self._sealed
        actions: list[Action] = []
        while packets.taken < len(packets.spans):
            actions += self._shell.node.outbound(packets, sealed, now)
            self._transmit()
            if sealed.runs:
                self._held = packets
                self._shell.hold()
                break
        return actions

    def _transmit(self) -> None:
        if refused := self.transport.send(self._sealed):
            self._shell.node.drop(DropReason.SEND_FAILED, refused)

    def sendingResumed(self) -> None:
        """Go on with what is sealed, then with what is not, then with the TUN device."""
        self._transmit()
        if self._sealed.runs or (held := self._held) is None:
            return
        self._held = None
        try:
            self._shell.perform(self.seal, held)
        finally:  # whatever raises, the TUN device must be read again
            if self._held is None:
                self._shell.release()

    def send(self, action: Send, now: float) -> Iterable[Action]:
        """Send a datagram, and return what the node makes of a failure (R3)."""
        if self.transport.sendDatagram(action.datagram, action.path):
            return ()
        self._shell.node.drop(DropReason.SEND_FAILED)
        if self.transport.send_errno not in _NO_WAY:
            return ()
        return self._shell.node.unreachable(action.path.remote, now)
