"""
The IP filter: the data path between inner packets and ESP datagrams (the patent's 1c and 21c).

Outbound, the node has chosen a session for a packet from the TUN device:
    1. `seal` appends the packet, sealed under the session's newest confirmed SA, to a datagram batch.
Inbound, for each datagram of a batch:
    2. the first four bytes select the pair of SAs, or session control;
    3. replay check, open, replay commit (rvpn.esp.sa); the first packet that opens confirms the pair;
    4. the inner source must be the peer's, the destination what this node serves (`Gatekeeper.admits`);
    5. the inner packet is appended to the packet batch for the TUN device.

Batches belong to the caller and come with room for what their counterpart can hold. A packet that goes no
further is counted under its `DropReason`.
"""

from collections import Counter
from typing import Protocol

from rvpn.constants import CONTROL_SPI, NAT_KEEPALIVE, NextHeader
from rvpn.errors import DropReason, RemoteError, SAExhausted
from rvpn.interfaces import Action, DatagramBatch, PacketBatch, Path, Send
from rvpn.packet import addresses
from rvpn.sessions import SAPair, Session, SessionCache

_KEEPALIVE_SPI = NAT_KEEPALIVE[0]


class Gatekeeper(Protocol):
    """What a node decides about packets; called only where the fast path has no answer of its own."""

    def admits(self, session: Session, source: bytes, destination: bytes) -> None:
        """
        Raise `RemoteError` unless an inner packet from `source` to `destination` may come through `session`.
        """

    def confirmed(self, pair: SAPair, now: float) -> list[Action]:
        """Hear that the first packet opened under `pair`."""

    def control(self, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """Take a session control packet. Raises `RemoteError`."""

    def strayed(self, session: Session, path: Path, now: float) -> list[Action]:
        """Hear that the newest packet of `session` came along another path than its own (DESIGN 3)."""

    def unknown_spi(self, datagram: memoryview, path: Path, now: float) -> list[Action]:
        """Take an ESP packet of no session. Raises `RemoteError`."""


class IPFilter:
    """See the module. `drops` counts by reason."""

    def __init__(self, cache: SessionCache, gatekeeper: Gatekeeper) -> None:
        self._by_spi = cache.by_spi
        self._gatekeeper = gatekeeper
        self.drops: Counter[DropReason] = Counter()

    def seal(
        self, session: Session, packet: memoryview | bytes, next_header: int, datagrams: DatagramBatch
    ) -> None:
        """
        Append `packet` to `datagrams` as ESP for the peer of `session`.

        Raises `SAExhausted` if the SA has reached its hard limit.
        """
        pair = session.sending
        assert pair is not None
        size = pair.outbound.seal_into(packet, next_header, datagrams.view[datagrams.length :])
        datagrams.path = session.path
        datagrams.size = datagrams.size or size
        datagrams.length += size
        datagrams.count += 1
        session.packets_out += 1
        session.bytes_out += len(packet)

    def open(self, datagrams: DatagramBatch, packets: PacketBatch, now: float) -> list[Action]:
        """Open each datagram; inner packets go to `packets`, what else they draw is returned."""
        actions: list[Action] = []
        size = datagrams.size or 1
        for start in range(0, datagrams.length, size):
            try:
                actions += self._open_one(
                    datagrams.view[start : min(start + size, datagrams.length)], datagrams.path, packets, now
                )
            except RemoteError as error:
                self.drops[error.reason] += 1
        return actions

    def _open_one(
        self, datagram: memoryview, path: Path | None, packets: PacketBatch, now: float
    ) -> list[Action]:
        spi = int.from_bytes(datagram[:4])
        if spi == CONTROL_SPI:
            assert path is not None
            return self._gatekeeper.control(datagram, path, now)
        pair = self._by_spi.get(spi)
        if pair is None:
            if len(datagram) == 1 and spi == _KEEPALIVE_SPI:
                return []
            assert path is not None
            return self._gatekeeper.unknown_spi(datagram, path, now)
        room = packets.view[packets.length :]
        length, next_header = pair.inbound.open_into(datagram, room)
        actions = [] if pair.confirmed else self._gatekeeper.confirmed(pair, now)
        session = pair.session
        assert session is not None
        session.heard(now)
        if path is not session.seen_path and path is not None:
            actions += self._seen(session, pair, datagram, path, now)
        if next_header == NextHeader.DUMMY:
            return actions + self._answer(pair)
        self._check(session, room[:length], next_header)
        packets.spans.append((packets.length, packets.length + length))
        packets.length += length
        session.packets_in += 1
        session.bytes_in += length
        return actions

    def _seen(
        self, session: Session, pair: SAPair, datagram: memoryview, path: Path, now: float
    ) -> list[Action]:
        """Look at a path that this session's last packet did not come along; an old packet tells nothing."""
        if int.from_bytes(datagram[4:8]) != pair.inbound.window.highest:
            return []
        if path.remote == session.path.remote:
            session.seen_path = path
            return []
        return self._gatekeeper.strayed(session, path, now)

    def _check(self, session: Session, packet: memoryview, next_header: int) -> None:
        version_header, source, destination = addresses(packet)
        if next_header != version_header:
            raise RemoteError(DropReason.MALFORMED_PACKET)
        self._gatekeeper.admits(session, source, destination)

    def _answer(self, pair: SAPair) -> list[Action]:
        """
        Answer the initiator's dummy packet with one (DESIGN 4, key confirmation in both directions).

        Only the acceptor of a pair answers, and one packet draws one of equal size: no loop can form. An
        exhausted SA answers nothing; its session fails when the next inner packet is to go out.
        """
        if pair.initiator or pair.session is None or pair.session.closed:
            return []
        try:
            return [dummy(pair)]
        except SAExhausted:
            return []


def dummy(pair: SAPair) -> Send:
    """Return an ESP packet that carries nothing (RFC 4303 section 2.6): it proves possession of the keys."""
    return Send(pair.outbound.seal(b"", NextHeader.DUMMY), pair.path)
