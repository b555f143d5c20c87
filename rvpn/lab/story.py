"""
The second half of the demonstration: gateways fail while traffic flows.

    pings, TCP -> the gateway in use is killed -> the next one loses its LAN -> the first is started again
        -> told as it happens; with the records and the client's own journal -> `Story`, for `rvpn.lab.page`

All times of a story are seconds since its beginning.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum, unique
from typing import Any

from rvpn.errors import LocalError
from rvpn.lab import faults, services
from rvpn.lab.lab import Lab
from rvpn.lab.monitor import PING_INTERVAL
from rvpn.lab.records import Arrival, Log, Progress, longest_gap, missing, steady
from rvpn.lab.series import Terms

#: The client's policy: a gateway is left after 0.2 s of silence, and returned to when it is back.
GENERAL = {**Terms().general(), "Failback": "yes", "FailbackHoldDown": "1"}
#: Bytes per second there and back.
RATE = 1_000_000
#: Seconds between what happens, for traffic to settle, and for a client to return.
_CALM, _SETTLING, _RETURNING = 2.0, 0.4, 15.0
_POLL = 0.02


@unique
class Sort(Enum):
    """What a moment is about."""

    FAULT = "fault"
    SWITCH = "switch"
    TRAFFIC = "traffic"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened; in charts it is marked if there are words for that."""

    at: float
    sort: Sort
    words: str
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Outage:
    """What a fault cost: nothing arrived between `begin` and `end`, and so many pings were lost."""

    words: str
    at: float
    begin: float
    end: float
    lost: int

    @property
    def length(self) -> float:
        """Seconds without a ping reply, beyond the interval between pings."""
        return max(0.0, self.end - self.begin - PING_INTERVAL)


@dataclass(slots=True)
class Story:
    """What was seen; `used` tells since when which gateway was in use."""

    bound: float = 0.0
    length: float = 0.0
    moments: list[Moment] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    used: list[tuple[float, str]] = field(default_factory=list)
    journal: Sequence[Mapping[str, Any]] = ()
    replies: Sequence[Arrival] = ()
    progress: Sequence[Progress] = ()
    pings: int = 0


def tell(lab: Lab, told: Callable[[Moment], None]) -> Story:
    """
    Let gateways fail in a laboratory whose services run with `GENERAL`, telling each moment.

    Raises `LocalError` if traffic does not flow, or a service does not start again.
    """
    ipv4, ipv6 = lab.topology.lan_addresses(lab.topology.target_names[0])
    pings = Log(lab.directory / "pings", Arrival)
    transfer = Log(lab.directory / "transfer", Progress)
    with ExitStack() as running:
        running.enter_context(lab.start_monitor("client", "ping", ipv4, pings.path))
        running.enter_context(lab.start_monitor("client", "transfer", ipv6, transfer.path, f"--rate={RATE}"))
        stage = _Stage(lab, pings, transfer, told)
        first = stage.fault("kill", "is killed (SIGKILL)", "killed")
        stage.fault("lan-down", "loses its LAN interface", "without LAN")
        stage.back(first)
        return stage.end()


class _Stage:
    """Makes a story happen and takes it down."""

    def __init__(
        self, lab: Lab, pings: Log[Arrival], transfer: Log[Progress], told: Callable[[Moment], None]
    ) -> None:
        self._lab, self._pings, self._transfer, self._told = lab, pings, transfer, told
        topology = lab.topology
        self._names = {str(topology.gateway_address(name)): name for name in topology.gateway_names}
        self._wait("traffic flows", lambda: bool(transfer.path.stat().st_size) and self._steady())
        self._begun = time.monotonic()
        self._wall = time.time() - self._begun
        status = services.ask_status(lab, "client")
        self._changes_told = len(status["failovers"])
        gateway = self._in_use()
        self.story = Story(bound=status["promise"]["bound"], used=[(0.0, gateway)])
        rate = f"{1 / PING_INTERVAL:.0f} pings a second, TCP with {RATE * 8e-6:.0f} Mbit/s there and back"
        self._tell(Moment(0.0, Sort.NOTE, f"traffic flows through {gateway}: {rate}"))
        time.sleep(_CALM)

    # --- What happens ----------------------------------------------------------------------------

    def fault(self, fault: str, words: str, mark: str) -> str:
        """Inflict a fault on the gateway in use, which is returned, and tell what came of it."""
        gateway = self._in_use()
        since = time.monotonic()
        faults.FAULTS[fault].inflict(self._lab, gateway)
        mark = f"{gateway} {mark}"
        self._tell(Moment(self._at(since), Sort.FAULT, f"{gateway} {words}", mark))
        time.sleep(_SETTLING)
        self._wait("pings are answered again", self._steady)
        gap = longest_gap((reply.received for reply in self._pings.read()), since, time.monotonic())
        lost = missing(self._pings.read(), since, time.monotonic())
        begin, end = self._at(gap.begin), self._at(gap.end)
        outage = Outage(mark, self._at(since), begin, end, lost)
        self.story.outages.append(outage)
        cost = f"nothing got through for {outage.length * 1e3:.0f} ms; pings lost: {lost}; TCP goes on"
        again = Moment(end, Sort.TRAFFIC, cost)
        for moment in sorted([*self._changes(), again], key=lambda moment: moment.at):
            self._tell(moment)
        time.sleep(_CALM)
        return gateway

    def back(self, gateway: str) -> None:
        """Start a gateway again that was killed, and wait until the client is back there."""
        self._tell(
            Moment(self._at(time.monotonic()), Sort.NOTE, f"{gateway} is started again", f"{gateway} started")
        )
        faults.restart(self._lab, gateway)
        since = time.monotonic()
        self._tell(Moment(self._at(since), Sort.NOTE, f"{gateway} is ready", f"{gateway} ready"))
        self._wait(f"the client is back at {gateway}", lambda: self._in_use() == gateway, _RETURNING)
        time.sleep(_SETTLING)
        for moment in self._changes():
            self._tell(moment)
        if not missing(self._pings.read(), since, time.monotonic()):
            self._tell(Moment(self._at(time.monotonic()), Sort.TRAFFIC, "no ping was lost by the return"))
        time.sleep(_CALM - _SETTLING)

    def end(self) -> Story:
        """Return the whole story."""
        ended = time.monotonic()
        story, begun = self.story, self._begun
        story.length = self._at(ended)
        story.journal = [
            self._named(change) for change in services.ask_status(self._lab, "client")["failovers"]
        ]
        replies = [reply for reply in self._pings.read() if begun < reply.received < ended]
        story.replies = [Arrival(r.number, r.sent - begun, r.received - begun) for r in replies]
        story.progress = [each._replace(when=each.when - begun) for each in self._transfer.read()]
        story.pings = replies[-1].number - replies[0].number + 1
        return story

    # --- What is seen ----------------------------------------------------------------------------

    def _tell(self, moment: Moment) -> None:
        self.story.moments.append(moment)
        self._told(moment)

    def _at(self, when: float) -> float:
        return when - self._begun

    def _in_use(self) -> str:
        return services.in_use(self._lab) or "none"

    def _steady(self) -> bool:
        return steady(self._pings.read(), PING_INTERVAL, time.monotonic())

    def _wait(self, what: str, done: Callable[[], bool], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise LocalError(f"waited {seconds:g} s in vain: {what}")
            time.sleep(_POLL)

    def _changes(self) -> Iterator[Moment]:
        """Yield what the client's journal says that was not told yet."""
        changes = services.ask_status(self._lab, "client")["failovers"]
        for change in map(self._named, changes[self._changes_told :]):
            at = change["time"] - self._wall - self._begun
            if change["taken"] is not None:
                self.story.used.append((at, change["taken"]))
            taken = f"goes to {change['taken']}" if change["taken"] else f"leaves {change['left']}"
            yield Moment(at, Sort.SWITCH, f"the client {taken}: {change['reason']}")
        self._changes_told = len(changes)

    def _named(self, change: Mapping[str, Any]) -> dict[str, Any]:
        """Put names for the gateways' addresses into an entry of the journal."""
        words = {key: value for key, value in change.items() if isinstance(value, str)}
        for address, name in self._names.items():
            words = {
                key: value.replace(f"gateway {address}", name).replace(address, name)
                for key, value in words.items()
            }
        return {**change, **words}
