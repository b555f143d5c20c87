"""
What a client sends that nobody asked it to, counted on its outside link in each heartbeat mode (R6, R9).

    laboratories, one per mode -> for each load: capture -> nothing, or payload -> `Count`

Idle, DEFERRED and NONE have to be silent. Busy, a client that is answered has no reason for heartbeats but
X8's; one that is not sends them after HeartbeatDeferTime, in DEFERRED mode directly behind a payload packet.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum, unique
from pathlib import Path

from rvpn.constants import HeartbeatMode, Role
from rvpn.datapath.packet import addresses
from rvpn.interfaces import IPAddress
from rvpn.lab import services
from rvpn.lab.capture import OUTSIDE_LINK, Capture
from rvpn.lab.classify import Classifier, Kind
from rvpn.lab.lab import Lab
from rvpn.lab.pcap import frames
from rvpn.lab.series import Terms
from rvpn.lab.topology import Topology

#: Seconds between two packets of a busy client.
INTERVAL = 0.05
#: Seconds for what belongs to the beginning of a session.
_SETTLING = 2.0
_ETHERNET_HEADER = 14


@unique
class Load(Enum):
    """What the client has to do meanwhile; the value is its name in reports."""

    IDLE = "idle"
    ANSWERED = "pings, answered"
    UNANSWERED = "datagrams, unanswered"


@dataclass(frozen=True, slots=True)
class Count:
    """What a client under these terms sent in `seconds`, packets of the link itself left out."""

    terms: Terms
    load: Load
    seconds: float
    payload: int
    heartbeats: int
    #: Heartbeats whose packet before, of this client, was payload.
    following: int
    other: int

    @property
    def expected(self) -> tuple[float, float]:
        """The fewest and the most heartbeats that the rules allow."""
        mode, terms = self.terms.heartbeat, self.terms
        if mode is HeartbeatMode.NONE or (mode is HeartbeatMode.DEFERRED and self.load is Load.IDLE):
            return 0, 0
        assert terms.defer is not None
        interval = terms.confirm if self.load is Load.ANSWERED else terms.defer
        if not interval:
            return 0, 0
        # An answer takes a while, and DEFERRED waits for the next packet: the interval is a little longer.
        return self.seconds / (1.2 * interval + INTERVAL) - 1, self.seconds / interval + 1

    @property
    def good(self) -> bool:
        """Whether it is as the rules say; nothing but heartbeats may come without payload."""
        fewest, most = self.expected
        deferred = self.terms.heartbeat is HeartbeatMode.DEFERRED
        unasked = self.other or (self.load is Load.IDLE and self.payload)
        return (
            fewest <= self.heartbeats <= most
            and not unasked
            and not (deferred and self.following < self.heartbeats)
        )


def count(terms: Sequence[Terms], seconds: float) -> list[Count]:
    """Count in one laboratory for each of the terms, all at the same time. Raises `LocalError`."""
    with ExitStack() as stack:
        labs = [(each, stack.enter_context(_laboratory(each))) for each in terms]
        return [counted for load in Load for counted in _count(labs, load, seconds)]


@contextmanager
def _laboratory(terms: Terms) -> Iterator[Lab]:
    with Lab.start(Topology(targets=1, proxy_arp=True)) as lab:
        services.configure(lab, {Role.CLIENT: terms.general()})
        services.start_all(lab)
        (target,) = lab.topology.target_names
        # Somebody takes the datagrams that nobody is to answer.
        with lab.start_monitor(target, "receive", lab.topology.lan_addresses(target)[0]):
            time.sleep(_SETTLING)
            yield lab


def _count(labs: Sequence[tuple[Terms, Lab]], load: Load, seconds: float) -> Iterator[Count]:
    tool = {Load.ANSWERED: "ping", Load.UNANSWERED: "send"}.get(load)
    with ExitStack() as stack:
        for _, lab in labs if tool is not None else ():
            address = lab.topology.lan_addresses(lab.topology.target_names[0])[0]
            arguments = (tool, address, lab.directory / load.name, f"--interval={INTERVAL}")
            stack.enter_context(lab.start_monitor("client", *arguments))
        captures = []
        for _, lab in labs:
            capture = stack.enter_context(Capture.start(lab, OUTSIDE_LINK, load.name))
            captures.append((capture, time.monotonic()))
        time.sleep(seconds)
        for (terms, lab), (capture, begun) in zip(labs, captures, strict=True):
            capture.stop()
            elapsed = time.monotonic() - begun
            yield _evaluate(terms, load, elapsed, [kind for _, kind in sent(lab, capture.pcap)])


def sent(lab: Lab, pcap: Path) -> Iterator[tuple[float, Kind]]:
    """
    Yield the time of day and what it is of each packet that the client sent, by a capture of OUTSIDE_LINK.

    What belongs to the link itself is left out.
    """
    client: IPAddress = lab.topology.client_address
    classifier = Classifier(lab.topology.inner_addresses)
    for when, frame in frames(pcap):
        kind = classifier.classify(memoryview(frame))
        if kind is not Kind.NEIGHBOUR and addresses(memoryview(frame)[_ETHERNET_HEADER:])[1] == client.packed:
            yield when, kind


def _evaluate(terms: Terms, load: Load, seconds: float, kinds: Sequence[Kind]) -> Count:
    pairs = list(zip([None, *kinds], kinds, strict=False))
    return Count(
        terms,
        load,
        seconds,
        payload=kinds.count(Kind.ESP),
        heartbeats=kinds.count(Kind.SESSION_CONTROL),
        following=pairs.count((Kind.ESP, Kind.SESSION_CONTROL)),
        other=sum(kind not in (Kind.ESP, Kind.SESSION_CONTROL) for kind in kinds),
    )
