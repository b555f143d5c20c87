"""
The two Twisted protocols of a node, over one UDP port (DESIGN 3).

    datagram -> TunnelProtocol: the first four bytes are zero -> KeyExchangeProtocol -> the node's key
    exchange
                                                        else -> the node's data path -> TUN device

Both hand over to the node, a calculation, and have the service perform it.
"""

from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import AbstractDatagramProtocol

from rvpn.constants import KEY_EXCHANGE_MARKER
from rvpn.interfaces import DatagramBatch, Path
from rvpn.net.udpsocket import PathError

if TYPE_CHECKING:
    from rvpn.service.tunnel import TunnelService


class KeyExchangeProtocol(AbstractDatagramProtocol):
    """The authenticated key exchange: a datagram is a fragment of a token, or speaks of one (DESIGN 4)."""

    def __init__(self, service: "TunnelService[Any]") -> None:
        self._service = service

    def fragmentReceived(self, datagram: bytes, path: Path) -> None:
        """Take one datagram that begins with the marker."""
        self._service.perform(lambda now: self._service.node.key_exchange(datagram, path, now))


class TunnelProtocol(AbstractDatagramProtocol):
    """The datagram tunnel: ESP and session control, and the way to the key exchange beside it."""

    def __init__(self, service: "TunnelService[Any]") -> None:
        self._service = service
        self._key_exchange = KeyExchangeProtocol(service)

    def batchReceived(self, batch: DatagramBatch) -> None:
        """Take the datagram of a batch of one."""
        if batch.buffer.startswith(KEY_EXCHANGE_MARKER) and batch.length >= len(KEY_EXCHANGE_MARKER):
            assert batch.path is not None
            self._key_exchange.fragmentReceived(bytes(batch.view[: batch.length]), batch.path)
        else:
            self._service.datagramsReceived(batch)

    def pathErrorReceived(self, error: PathError) -> None:
        """Take what the network says of a datagram of ours."""
        self._service.refused(error)
