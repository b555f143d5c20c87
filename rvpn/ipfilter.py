"""
The IP filter: which datagrams become inner packets for this host (the patent's 1c and 21c).

For each run of a batch:
    1. the first four bytes of a datagram select the pair of SAs, or session control, or the key exchange;
    2. replay check, open, replay commit (rvpn.esp.sa); the first packet that opens confirms the pair;
    3. what continues the packet before it is added to that (rvpn.coalesce); of any other the inner source
       must be the peer's, the destination what this node serves (`Gatekeeper.admits`);
    4. the inner packets are in the packet batch for the TUN device.
The way out is `rvpn.sealing`.

Batches belong to the caller and come with room for what their counterpart can hold. A packet that goes no
further is counted under its `DropReason`.
"""

from collections import Counter
from struct import Struct
from typing import Protocol

from rvpn.coalesce import Coalescer
from rvpn.constants import (
    CONTROL_SPI,
    KEY_EXCHANGE_MARKER,
    NAT_KEEPALIVE,
    NextHeader,
)
from rvpn.errors import DropReason, RemoteError, SAExhausted
from rvpn.esp.codec import SHORTEST, Slot, Slots, slot
from rvpn.interfaces import Action, DatagramBatch, PacketBatch, Path, Run, Send
from rvpn.packet import addresses
from rvpn.sessions import SAPair, Session, SessionCache

_KEEPALIVE_SPI = NAT_KEEPALIVE[0]
# Looking up the member of an enum costs more than the rest of a comparison.
_DUMMY, _PARTIAL = int(NextHeader.DUMMY), int(NextHeader.PARTIAL)
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
        self._coalescer = Coalescer(())
        #: What the packet that grows came under: it may have begun in the run before.
        self._growing: SAPair | None = None
        self._slots = Slots()
        self.drops: Counter[DropReason] = Counter()
        self.heard: list[Session] = []

    def coalesce(self, protocols: frozenset[int]) -> None:
        """Let super-packets of these protocols be made, since the TUN device takes them."""
        self._coalescer = Coalescer(protocols)

    def open(self, datagrams: DatagramBatch, packets: PacketBatch, now: float) -> list[Action]:
        """Open each datagram; inner packets go to `packets`, what else they draw is returned."""
        actions: list[Action] = []
        self.heard.clear()
        self._coalescer.packets = packets
        for run in datagrams.runs:
            rest = (run.end - run.start) % run.size
            if run.size >= SHORTEST:
                self._open_run(run, self._cut(run, datagrams.view), datagrams, actions, now)
            if run.size < SHORTEST or 0 < rest < SHORTEST:
                start = run.start if run.size < SHORTEST else run.end - rest
                for offset in range(start, run.end, run.size):
                    self._take_other(offset, run, datagrams, actions, now)
        self._coalescer.flush()
        self._growing = None
        return actions

    def _cut(self, run: Run, view: memoryview) -> list[Slot]:
        """Return the slots of a run, but not that of a last datagram too short for one."""
        count, rest = divmod(run.end - run.start, run.size)
        slots = self._slots.of(view, run.start, run.size, count)[:count]
        if rest >= SHORTEST:
            slots.append(slot(view, run.end - rest, run.end))
        return slots

    def _open_run(
        self, run: Run, slots: list[Slot], datagrams: DatagramBatch, actions: list[Action], now: float
    ) -> None:
        """Open ESP packets; what does not depend on the packet is done once for those with one SPI."""
        buffer, path, read, coalescer = datagrams.buffer, run.path, _FIELDS.unpack_from, self._coalescer
        current, session, pair = -1, None, None
        opened = octets = 0
        for offset, additional, sealed in slots:
            spi, sequence, iv = read(buffer, offset)
            if spi != current:
                self._count(session, opened, octets)
                opened = octets = 0
                current, session, pair = spi, None, self._by_spi.get(spi)
                if pair is not self._growing:
                    coalescer.flush()
                    self._growing = pair
            if pair is None:
                self._take_other(offset, run, datagrams, actions, now)
                current = -1  # it may have changed what the SPI means
                continue
            try:
                plaintext, length = pair.inbound.open(sequence, iv, additional, sealed)
                if session is None:
                    actions += [] if pair.confirmed else self._gatekeeper.confirmed(pair, now)
                    session = pair.session
                    assert session is not None
                    session.heard(now)
                if path is not session.seen_path:
                    actions += self._seen(session, pair, sequence, path, now)
                next_header = plaintext[-1]
                if next_header != _PARTIAL or not coalescer.take(plaintext, length):
                    if next_header == _DUMMY:
                        actions += self._answer(pair)
                        continue
                    self._admit(session, pair, plaintext, length)
                opened += 1
                octets += length
            except RemoteError as error:
                self.drops[error.reason] += 1
        self._count(session, opened, octets)

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

    def _admit(self, session: Session, pair: SAPair, plaintext: bytes, length: int) -> None:
        """Add a packet that does not continue the one before it. Raises `RemoteError`."""
        version_header, source, destination = addresses(memoryview(plaintext)[:length])
        partial = plaintext[-1] == _PARTIAL and pair.partial_checksums
        if plaintext[-1] != version_header and not partial:
            raise RemoteError(DropReason.MALFORMED_PACKET)
        self._gatekeeper.admits(session, source, destination)
        (self._coalescer.start if partial else self._coalescer.put)(plaintext, length)

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
