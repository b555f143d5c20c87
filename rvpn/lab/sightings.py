"""
When control traffic passed the client's outside link: what a node at saturation is judged by.

    python -m rvpn.lab.sightings INTERFACE CLIENT FILE     says "ready", and goes on until it is killed

The kernel picks the datagrams of heartbeats and key exchanges out by a filter, so that the rest costs this
process nothing, and stamps them as they pass. Each becomes a `Sighting` in the file; `judge` makes figures of
them. The outside is IPv4.
"""

import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from rvpn.constants import CONTROL_SPI, UDP_HEADER
from rvpn.lab import wire
from rvpn.lab.records import Sighting, pack
from rvpn.net import bpf
from rvpn.session.session_control import Kind

#: What a sighting has for the kind of a key exchange's datagram; the others are those of session control.
KEY_EXCHANGE = 0
# <linux/if_ether.h>, <asm-generic/socket.h>
_ETH_P_ALL, _TIMESTAMPS = 3, 35
_TIMESTAMP = struct.Struct("=qq")
_ETHERNET = 14
#: Behind the SPI: a control packet's kind, sequence and what it replies to; a key exchange's id.
_CONTROL, _EXCHANGE = struct.Struct("!4xB7xQQ"), struct.Struct("!8xQ")

#: IPv4, UDP, and the payload begins with the SPI of control or with zero.
_FILTER = (
    (bpf.LOAD_HALF, 0, 0, 12),  # EtherType
    (bpf.IF_EQUAL, 0, 7, 0x0800),
    (bpf.LOAD_BYTE, 0, 0, _ETHERNET + 9),  # protocol
    (bpf.IF_EQUAL, 0, 5, socket.IPPROTO_UDP),
    (bpf.LOAD_HEADER_LENGTH, 0, 0, _ETHERNET),
    (bpf.LOAD_BEHIND, 0, 0, _ETHERNET + UDP_HEADER),  # the first four bytes of the payload
    (bpf.IF_EQUAL, 1, 0, 0),
    (bpf.IF_EQUAL, 0, 1, CONTROL_SPI),
    (bpf.RETURN, 0, 0, 128),
    (bpf.RETURN, 0, 0, bpf.NOTHING),
)


# --- In the router -------------------------------------------------------------------------------


def _open(interface: str) -> socket.socket:
    """Return a packet socket of what the filter takes, before anything passes. Raises OSError."""
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    bpf.attach(tap, _FILTER)
    tap.setsockopt(socket.SOL_SOCKET, _TIMESTAMPS, 1)
    tap.bind((interface, _ETH_P_ALL))
    return tap


def read(frame: bytes, when: float, client: bytes) -> Sighting | None:
    """Return what a frame that the filter took is, None if it is too short."""
    packet = frame[_ETHERNET:]
    outward = packet[12:16] == client
    gateway = int.from_bytes(packet[16:20] if outward else packet[12:16])
    datagram = packet[(packet[0] & 15) * 4 + UDP_HEADER :]
    with suppress(struct.error):
        if not any(datagram[:4]):
            return Sighting(when, gateway, KEY_EXCHANGE, outward, *_EXCHANGE.unpack_from(datagram))
        kind, sequence, in_reply_to = _CONTROL.unpack_from(datagram)
        return Sighting(when, gateway, kind, outward, sequence if kind == Kind.HEARTBEAT else in_reply_to)
    return None


def main() -> None:
    """Record until killed."""
    interface, client, file = sys.argv[1:]
    with _open(interface) as tap, Path(file).open("wb", buffering=0) as out:
        wire.say_ready()
        while True:
            frame, ancillary, _, _ = tap.recvmsg(256, socket.CMSG_SPACE(_TIMESTAMP.size))
            seconds, nanoseconds = _TIMESTAMP.unpack(ancillary[0][2])
            sighting = read(frame, seconds + nanoseconds / 1e9, IPv4Address(client).packed)
            if sighting is not None:
                out.write(pack(sighting))


# --- What it means -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was seen: heartbeats, those not answered in time, key exchanges, and seconds of the longest."""

    heartbeats: int
    late: int
    longest_answer: float
    exchanges: int
    longest_exchange: float


def judge(sightings: Iterable[Sighting], response: float) -> Judgement:
    """Judge by the seconds that an answer may take. A heartbeat that is not answered at all is late."""
    seen = sorted(sightings)
    answers = list(_answers(seen))
    exchanges = list(_exchanges(seen))
    heartbeats = sum(each.kind == Kind.HEARTBEAT and bool(each.outward) for each in seen)
    return Judgement(
        heartbeats,
        heartbeats - sum(seconds <= response for seconds in answers),
        max(answers, default=0.0),
        len(exchanges),
        max(exchanges, default=0.0),
    )


def _answers(seen: Iterable[Sighting]) -> Iterator[float]:
    """Yield the seconds to each answer; sequences begin anew with new keys, so that the last one counts."""
    sent: dict[tuple[int, int], float] = {}
    for each in seen:
        key = each.gateway, each.number
        if each.kind == Kind.HEARTBEAT and each.outward:
            sent[key] = each.when
        elif each.kind == Kind.ANSWER and not each.outward and key in sent:
            yield each.when - sent.pop(key)


def _exchanges(seen: Iterable[Sighting]) -> Iterator[float]:
    """Yield the seconds from the first to the last datagram of each key exchange."""
    times: dict[int, list[float]] = {}
    for each in seen:
        if each.kind == KEY_EXCHANGE:
            times.setdefault(each.number, []).append(each.when)
    return (max(each) - min(each) for each in times.values())


if __name__ == "__main__":
    main()
