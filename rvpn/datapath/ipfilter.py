"""
The IP filter: which datagrams become inner packets for this host (the patent's 1c and 21c).

For each run of a batch:
    1. the first four bytes of a datagram select the pair of SAs, or session control, or the key exchange;
    2. replay check, open, replay commit (rvpn.esp.sa); the first packet that opens confirms the pair;
    3. what continues the packet before it is added to that (`coalesce`, `joining`); of any other the inner
       source must be the peer's, the destination what this node serves (`Gatekeeper.admits`);
    4. the inner packets are in the packet batch for the TUN device.
The way out is `rvpn.datapath.sealing`.

Batches belong to the caller and come with room for what their counterpart can hold. A packet that goes no
further is counted under its `DropReason`.
"""

from collections import Counter
from struct import Struct
from typing import Protocol

from rvpn.constants import (
    CONTROL_SPI,
    KEY_EXCHANGE_MARKER,
    NAT_KEEPALIVE,
    NextHeader,
)
from rvpn.datapath.coalesce import Coalescer
from rvpn.datapath.joining import Joiner
from rvpn.datapath.offload import COMPLETE
from rvpn.datapath.packet import addresses
from rvpn.errors import DropReason, RemoteError, SAExhausted
from rvpn.esp.codec import AAD_SIZE, HEADER, ICV_SIZE, SHORTEST, Columns, KeptSlots, Slots
from rvpn.interfaces import Action, DatagramBatch, PacketBatch, Path, Run, Send
from rvpn.session.sessions import SAPair, Session, SessionCache

_KEEPALIVE_SPI = NAT_KEEPALIVE[0]
# Looking up the member of an enum costs more than the rest of a comparison.
_DUMMY, _PARTIAL, _TRAIN = int(NextHeader.DUMMY), int(NextHeader.PARTIAL), int(NextHeader.TRAIN)
#: SPI, sequence number, IV.
_FIELDS = Struct("!II8s")


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
    """
    See the module.

    `drops` counts by reason. `heard` are the sessions that the packets of the last batch came through.
    """

    def __init__(self, cache: SessionCache, gatekeeper: Gatekeeper) -> None:
        self._by_spi = cache.by_spi
        self._gatekeeper = gatekeeper
        self._packets = PacketBatch(0)
        self._coalescer = Coalescer(())
        #: What the packet that grows came under, if there is one: it may have begun in the run before.
        self._growing: SAPair | None = None
        self._joiner = Joiner()
        self._slots = KeptSlots()
        self._spare = 0
        self.drops: Counter[DropReason] = Counter()
        self.heard: list[Session] = []

    def coalesce(self, protocols: frozenset[int]) -> None:
        """Let super-packets of these protocols be made, since the TUN device takes them."""
        self._coalescer = Coalescer(protocols)

    def open(self, datagrams: DatagramBatch, packets: PacketBatch, now: float) -> list[Action]:
        """Open each datagram; inner packets go to `packets`, what else they draw is returned."""
        actions: list[Action] = []
        self.heard.clear()
        self._packets = self._coalescer.packets = self._joiner.packets = packets
        self._spare = len(packets.buffer) - datagrams.length
        try:
            for run in datagrams.runs:
                rest = (run.end - run.start) % run.size
                if run.size >= SHORTEST:
                    self._open_run(run, self._cut(run, datagrams.view), datagrams, actions, now)
                if run.size < SHORTEST or 0 < rest < SHORTEST:
                    start = run.start if run.size < SHORTEST else run.end - rest
                    for offset in range(start, run.end, run.size):
                        self._take_other(offset, run, datagrams, actions, now)
        finally:  # nothing grows into the next batch, whatever raises
            if self._growing is not None:
                self._flush()
        return actions

    def _flush(self) -> None:
        """Let nothing continue what grows, here or there."""
        self._growing = None
        self._coalescer.flush()
        self._joiner.close()

    def _cut(self, run: Run, view: memoryview) -> Columns:
        """Return the slots of a run, but not that of a last datagram too short for one."""
        start, end, size = run.start, run.end, run.size
        if end - start == size:
            return [start], [view[start : start + AAD_SIZE]], [view[start + HEADER.size : end]]
        count, rest = divmod(end - start, size)
        slots = self._slots.of(view, start, size, 0, count)
        return slots.add(view, end - rest, end) if rest >= SHORTEST else slots

    def _open_run(
        self, run: Run, slots: Columns, datagrams: DatagramBatch, actions: list[Action], now: float
    ) -> None:
        """
        Open ESP packets; what does not depend on the packet is done once for those with one SPI, or, if they
        continue a train, once for all.
        """
        buffer, path, read = datagrams.buffer, run.path, _FIELDS.unpack_from
        coalescer, joiner = self._coalescer, self._joiner
        current, session, pair = -1, None, None
        opened = octets = 0
        starts, additional, sealed = slots
        number, count = 0, len(starts)
        while number < count:
            at, row, offset = number, 0, starts[number]
            number += 1
            spi, sequence, iv = read(buffer, offset)
            if spi != current:
                current, pair = spi, self._turn_to(spi, session, opened, octets)
                session, opened, octets = None, 0, 0
            if pair is None:
                self._take_other(offset, run, datagrams, actions, now)
                current = -1  # it may have changed what the SPI means
                continue
            try:
                if sequence == joiner.expected:
                    following = Slots(starts[at:], additional[at:], sealed[at:])
                    row, length = self._open_row(pair, buffer, following)
                if row:
                    number = at + row
                    sequence += row - 1
                else:
                    plaintext, length = pair.inbound.open(sequence, iv, additional[at], sealed[at])
                if session is None:
                    session = self._hear(pair, actions, now)
                if path is not session.seen_path:
                    actions += self._seen(session, pair, sequence, path, now)
                if not row and (plaintext[-1] != _PARTIAL or not coalescer.take(plaintext, length)):
                    length = self._begin(session, pair, sequence, plaintext, length, offset, actions)
                opened += row or length > 0
                octets += length
            except RemoteError as error:
                self.drops[error.reason] += 1
        self._count(session, opened, octets)

    def _turn_to(self, spi: int, session: Session | None, opened: int, octets: int) -> SAPair | None:
        """
        Return the pair of SAs with this SPI, and count what came under the one before.

        What that has brought, nothing continues.
        """
        if opened:
            self._count(session, opened, octets)
        pair = self._by_spi.get(spi)
        if pair is not self._growing is not None:
            self._flush()
        return pair

    def _hear(self, pair: SAPair, actions: list[Action], now: float) -> Session:
        """Take a packet that opened for what it proves; return its session."""
        actions += [] if pair.confirmed else self._gatekeeper.confirmed(pair, now)
        session = pair.session
        assert session is not None
        session.heard(now)
        return session

    def _open_row(self, pair: SAPair, buffer: bytearray, slots: Slots) -> tuple[int, int]:
        """
        Open what of `slots` continues a train, straight behind its last segment; return how many packets
        these are, and the bytes of the inner ones. Raises `RemoteError` if the first does not open.
        """
        joiner, sealed = self._joiner, slots.sealed
        places = joiner.row(len(sealed))
        # The datagrams of a run have one length, and the segments of a train, but the last one of each.
        if places and len(sealed[len(places) - 1]) != len(places[-1]) + ICV_SIZE:
            places.pop()
        if not places or len(sealed[0]) != len(places[0]) + ICV_SIZE:
            return 0, 0
        opened = pair.inbound.open_row(joiner.expected, buffer, slots, places)
        return opened, joiner.grow(opened)

    def _count(self, session: Session | None, packets: int, octets: int) -> None:
        if session is not None and packets:
            session.packets_in += packets
            session.bytes_in += octets
            self.heard.append(session)

    def _take_other(
        self, offset: int, run: Run, datagrams: DatagramBatch, actions: list[Action], now: float
    ) -> None:
        """Take the datagram at `offset`, which no SA opens."""
        datagram = datagrams.view[offset : min(offset + run.size, run.end)]
        if datagram[:4] == KEY_EXCHANGE_MARKER:
            datagrams.set_aside.append((bytes(datagram), run.path))
            return
        try:
            actions += self._other(datagram, run.path, now)
        except RemoteError as error:
            self.drops[error.reason] += 1

    def _other(self, datagram: memoryview, path: Path, now: float) -> list[Action]:
        spi = int.from_bytes(datagram[:4])
        if spi == CONTROL_SPI:
            return self._gatekeeper.control(datagram, path, now)
        if spi in self._by_spi:
            raise RemoteError(DropReason.SHORT_DATAGRAM, f"ESP in {len(datagram)} bytes")
        if len(datagram) == 1 and spi == _KEEPALIVE_SPI:
            return []
        return self._gatekeeper.unknown_spi(datagram, path, now)

    def _seen(self, session: Session, pair: SAPair, sequence: int, path: Path, now: float) -> list[Action]:
        """Look at a path that this session's last packet did not come along; an old packet tells nothing."""
        if sequence != pair.inbound.window.highest:
            return []
        if path.remote == session.path.remote:
            session.seen_path = path
            return []
        return self._gatekeeper.strayed(session, path, now)

    def _begin(
        self,
        session: Session,
        pair: SAPair,
        sequence: int,
        plaintext: bytes,
        length: int,
        offset: int,
        actions: list[Action],
    ) -> int:
        """
        Take a packet, of the datagram at `offset`, that does not continue the one before it.

        Returns the length of the inner packet, 0 if there is none. Raises `RemoteError`.
        """
        next_header = plaintext[-1]
        if next_header == _DUMMY:
            actions += self._answer(pair)
            return 0
        if next_header == _TRAIN:
            return self._begin_train(session, pair, sequence, plaintext, length, self._spare + offset)
        version_header, source, destination = addresses(memoryview(plaintext)[:length])
        partial = next_header == _PARTIAL and pair.partial_checksums
        if next_header != version_header and not partial:
            raise RemoteError(DropReason.MALFORMED_PACKET)
        self._gatekeeper.admits(session, source, destination)
        if self._growing is not None:
            self._flush()
        if partial:
            self._growing = pair
            self._coalescer.start(plaintext, length)
        else:
            self._packets.append(COMPLETE + plaintext[:length])
        return length

    def _begin_train(
        self, session: Session, pair: SAPair, sequence: int, plaintext: bytes, length: int, latest: int
    ) -> int:
        """
        As `_begin`, with a packet of a train. It is written at `latest` at most: what is still to be opened
        takes no more room than its datagrams do.
        """
        if not pair.trains:
            raise RemoteError(DropReason.MALFORMED_PACKET)
        train = self._joiner.train_of(plaintext, length)
        self._gatekeeper.admits(session, *train.addresses)
        self._coalescer.flush()
        self._growing = pair
        return self._joiner.start(train, sequence, plaintext, latest)

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
