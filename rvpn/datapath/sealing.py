"""
The way out: inner packets from the TUN device become runs of ESP in a datagram batch.

    1. the packet's addresses -> the session for it (`Router.route`); none -> it waits, or is answered
    2. too long for the session's path -> answered with ICMP, or left to the kernel to fragment
    3. what the host's kernel left undone is done (`offload`): a super-packet is cut, a checksum completed,
       unless the peer takes partial ones; if it takes trains, a super-packet of TCP becomes one (`trains`)
    4. packets of one length that follow one another are gathered, with their ESP trailers
    5. and sealed together under the session's newest confirmed SA (rvpn.esp.sa), as a run for one sendmsg

Batches belong to the caller. A packet that goes no further is counted under its `DropReason`.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from struct import Struct
from typing import Protocol

from rvpn.constants import (
    BATCH_CAPACITY,
    IP_HEADER,
    MIN_TUNNEL_MTU,
    RUN_BYTES,
    RUN_DATAGRAMS,
    VNET_HEADER,
    NextHeader,
)
from rvpn.datapath.offload import (
    CHECKSUM_OFFSET,
    EXTRA,
    GSO_TYPE,
    NEEDS_CSUM,
    UDP,
    Segmentation,
    VnetHeader,
    completed,
    is_partial,
    read_header,
    room_for,
)
from rvpn.datapath.packet import addresses, inspect
from rvpn.datapath.trains import Train
from rvpn.errors import DropReason, RemoteError, SAExhausted
from rvpn.esp.codec import OVERHEAD, TRAILERS, KeptSlots, Slots
from rvpn.esp.sa import OutboundSA
from rvpn.interfaces import Action, DatagramBatch, PacketBatch, Path, Run, Send
from rvpn.session.sessions import SAPair, Session

#: What tells how a packet is to be treated: its virtio_net_hdr, and its IP header without IPv4's
#: identification and checksum.
_IPV4, _IPV6 = Struct("14s2x4s2x8s"), Struct("50s")


class Router(Protocol):
    """What a node decides about packets on their way out."""

    def route(self, source: bytes, destination: bytes) -> Session | None:
        """
        Return the session for packets from `source` to `destination`, None if there is none yet.

        Raises `RemoteError` if they do not go through the tunnel.
        """

    def without_session(
        self, packet: memoryview, source: bytes, destination: bytes, now: float
    ) -> Sequence[Action]:
        """Take a packet, virtio_net_hdr first, for which there is no session."""

    def payload_sent(self, session: Session, now: float) -> Sequence[Action]:
        """Hear that a session which awaits payload gets some (R9)."""

    def too_big(self, packet: memoryview, mtu: int, destination: bytes) -> list[Action]:
        """Drop a packet that must not be fragmented and is longer than `mtu`."""

    def fail(self, session: Session, reason: str, now: float) -> list[Action]:
        """End a session that is of no more use."""


class Sealer:
    """See the module."""

    def __init__(self, router: Router, drops: Counter[DropReason]) -> None:
        self._router = router
        self._drops = drops
        self._slots = KeptSlots()
        self._datagrams = DatagramBatch(0)
        self._gathered: list[bytes] = []
        self._for: tuple[Session, SAPair] | None = None
        self._size = self._octets = 0
        #: The packet gathered last, if one that resembles it can follow without a thought, and its trailer.
        self._before: memoryview | None = None
        self._trailer = b""

    def seal(self, packets: PacketBatch, datagrams: DatagramBatch, now: float) -> list[Action]:
        """See `rvpn.interfaces.Node.outbound`."""
        datagrams.clear()
        self._datagrams = datagrams
        if self._gathered:  # what raised in the last batch is no matter of this one
            self._forget()
        actions: list[Action] = []
        begun, room = packets.taken, len(datagrams.buffer)
        for start, end in packets.spans[begun:]:
            packet = packets.view[start:end]
            try:
                room -= room_for(packet) if packet[GSO_TYPE] else end - start + EXTRA
                if room < 0:
                    if packets.taken > begun:
                        break
                    raise RemoteError(DropReason.MALFORMED_PACKET, f"{-room} bytes of segments too many")
                if self._before is None or not self._resembles(packet, self._before):
                    actions += self._take(packet, now)
            except RemoteError as error:
                self._drops[error.reason] += 1
            packets.taken += 1
        if self._gathered:
            actions += self._flush(now)
        return actions

    def seal_waiting(self, session: Session, packets: Collection[bytes], now: float) -> list[Action]:
        """Seal packets that waited for `session`, each by itself; what cannot go out is dropped."""
        actions: list[Action] = []
        apart = Sealer(self._router, self._drops)
        datagrams = apart._datagrams = DatagramBatch(BATCH_CAPACITY if packets else 0)
        for packet in packets:
            datagrams.clear()
            view = memoryview(packet)
            try:
                next_header, _, _ = addresses(view[VNET_HEADER:])
                actions += apart._add(session, view, next_header, now)
            except RemoteError as error:
                self._drops[error.reason] += 1
            actions += apart._flush(now)
            actions += [Send(bytes(datagram), path) for path, datagram in datagrams.datagrams()]
        return actions

    def _resembles(self, packet: memoryview, before: memoryview) -> bool:
        """
        Gather a packet for which all that was looked at is as in the one `before`, virtio_net_hdr first.

        Datagrams of one length that follow one another between two hosts take half the time so.
        """
        outline = (_IPV6 if before[VNET_HEADER] >> 4 == 6 else _IPV4).unpack_from
        if len(packet) != len(before) or outline(packet) != outline(before):
            return False
        self._gathered.append(b"".join((packet[VNET_HEADER:], self._trailer)))
        self._octets += len(packet) - VNET_HEADER
        return True

    def _take(self, packet: memoryview, now: float) -> Sequence[Action]:
        next_header, source, destination = addresses(packet[VNET_HEADER:])
        session = self._router.route(source, destination)
        if session is None:
            return self._router.without_session(packet, source, destination, now)
        actions = self._add(session, packet, next_header, now)
        if session.awaits_payload:
            self._before = None  # the next packet may go elsewhere
            return [*actions, *self._router.payload_sent(session, now)]
        return actions

    def _add(self, session: Session, packet: memoryview, next_header: int, now: float) -> Sequence[Action]:
        """Gather a packet, virtio_net_hdr first, for `session`."""
        pair = session.sending
        if pair is None:
            raise RemoteError(DropReason.NO_SESSION)
        flags, gso_type, _, _, start, offset = read_header(packet)
        inner = packet[VNET_HEADER:]
        if gso_type:
            return self._add_segments(session, pair, packet, next_header, now)
        length = len(inner)
        if length > session.inner_mtu and (answer := self._too_long(session, inner)):
            return answer
        plaintext: bytes | memoryview = inner
        if flags & NEEDS_CSUM:
            if pair.partial_checksums and is_partial(inner, start, offset):
                next_header = NextHeader.PARTIAL
            else:
                plaintext = completed(inner, start, offset)
        trailer = TRAILERS[next_header][length & 3]
        trailed = b"".join((plaintext, trailer))
        actions: Sequence[Action] = ()
        if len(trailed) != self._size or self._for != (session, pair):
            if self._gathered:
                actions = self._flush(now)
            self._for, self._size = (session, pair), len(trailed)
        self._gathered.append(trailed)
        self._octets += length
        # With another header of TCP, or behind those of IPv6, the checksum may be somewhere else.
        alike = plaintext is inner and (
            next_header != NextHeader.PARTIAL or (offset == CHECKSUM_OFFSET[UDP] and start <= IP_HEADER[6])
        )
        self._before, self._trailer = packet if alike else None, trailer
        return actions

    def _add_segments(
        self, session: Session, pair: SAPair, packet: memoryview, next_header: int, now: float
    ) -> Sequence[Action]:
        inner = packet[VNET_HEADER:]
        cut = Segmentation(VnetHeader.read(packet), inner)
        if cut.longest > session.inner_mtu and (answer := self._too_long(session, inner)):
            return answer
        actions = self._flush(now)
        # The least inner MTU holds even where the path carries a little less.
        fits = cut.longest <= session.inner_mtu != MIN_TUNNEL_MTU
        train = Train.of(cut, inner, pair.outbound.packets + 1) if pair.trains and fits else None
        self._for, self._octets = (session, pair), cut.octets
        if train is not None:
            self._gathered = train.cut(inner)
        else:
            if cut.partial and pair.partial_checksums:
                next_header = NextHeader.PARTIAL
            complete = not pair.partial_checksums
            self._gathered = cut.segments(TRAILERS[next_header], complete=complete)
        return [*actions, *self._flush(now)]

    def _too_long(self, session: Session, packet: memoryview) -> list[Action]:
        """
        Answer a packet that is, or would be cut, longer than the path carries (RFC 1191, RFC 8201).

        Returns nothing if it may be fragmented, which is for the kernel to do with its datagrams.
        """
        headers = inspect(packet)
        if not headers.dont_fragment:
            return []
        return self._router.too_big(packet, session.inner_mtu, headers.destination)

    def _flush(self, now: float) -> Sequence[Action]:
        """Seal what is gathered."""
        plaintexts, chosen = self._gathered, self._for
        if not plaintexts or chosen is None:
            return ()
        octets, (session, pair) = self._octets, chosen
        self._forget()
        count = len(plaintexts)
        if session.sending is not pair:
            self._drops[DropReason.NO_SESSION] += count
            return ()
        try:
            if count == 1:
                self._seal_one(session.path, pair.outbound, plaintexts[0])
            else:
                self._seal_run(session.path, pair.outbound, plaintexts)
        except SAExhausted as error:
            self._drops[DropReason.NO_SESSION] += count
            return self._router.fail(session, str(error), now)
        session.packets_out += count
        session.bytes_out += octets
        return ()

    def _forget(self) -> None:
        self._gathered, self._for, self._size, self._octets, self._before = [], None, 0, 0, None

    def _seal_one(self, path: Path, outbound: OutboundSA, plaintext: bytes) -> None:
        """Seal a packet alone: what is for runs would take it longer than the cipher does."""
        datagrams = self._datagrams
        start = datagrams.length
        end = start + len(plaintext) + OVERHEAD
        outbound.seal_one(plaintext, datagrams.view[start:end])
        run = datagrams.runs[-1] if datagrams.runs else None
        if run is not None and run.path is path and _room(run, end - start, 1):
            run.end = end
        else:
            datagrams.runs.append(Run(path, start, end, end - start))
        datagrams.length = end

    def _seal_run(self, path: Path, outbound: OutboundSA, plaintexts: list[bytes]) -> None:
        """Seal packets of one length; the last one may be shorter."""
        count, done = len(plaintexts), 0
        numbers = outbound.spend(count)
        while done < count:
            slots = self._place(path, count - done, len(plaintexts[done]), len(plaintexts[-1]))
            end = done + len(slots.starts)
            outbound.seal_run(numbers[done:end], plaintexts[done:end], self._datagrams.buffer, slots)
            done = end

    def _place(self, path: Path, count: int, size: int, last: int) -> Slots:
        """
        Return slots for as many of `count` plaintexts as continue the last run of the batch, or else fit into
        a new one. They have `size` bytes, the last one `last`.
        """
        size, last = size + OVERHEAD, last + OVERHEAD
        datagrams = self._datagrams
        runs = datagrams.runs
        run = runs[-1] if runs else None
        if run is None or run.path is not path or not (room := _room(run, size, count)):
            run = Run(path, datagrams.length, datagrams.length, size)
            room = max(1, min(RUN_DATAGRAMS, RUN_BYTES // size))
            runs.append(run)
        count, size, last = (count, run.size, last) if count <= room else (room, run.size, run.size)
        before, whole = (run.end - run.start) // size, count - (last != size)
        slots = self._slots.of(datagrams.view, run.start, size, before, before + whole)
        end = run.end + (count - 1) * size + last
        if whole < count:
            slots.add(datagrams.view, end - last, end)
        run.end = datagrams.length = end
        return slots


def _room(run: Run, size: int, count: int) -> int:
    """Return how many datagrams of `size` bytes still fit into `run`, if `count` are to, all equal or one."""
    used = run.end - run.start
    if used % run.size or size > run.size or (size < run.size and count > 1):
        return 0
    return min(RUN_DATAGRAMS - used // run.size, (RUN_BYTES - used) // run.size)
