"""
Trials of failover: the gateway in use is broken, and what that costs is measured from outside the product.

    Bench.start -> a laboratory with services, pings, a TCP transfer -> series
        -> trial: all is well -> the fault -> watched until pings are answered again -> healed
    -> `rvpn.lab.series`

The outage of a trial is the longest time between two ping replies in a row that ends after the fault, minus
the interval between pings.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from random import Random
from typing import Any, Self

from rvpn.constants import BACKOFF_LAST, EXCHANGE_TIME, Mechanism, Role
from rvpn.errors import LocalError
from rvpn.lab import faults, services
from rvpn.lab.lab import Lab, tail
from rvpn.lab.monitor import PING_INTERVAL
from rvpn.lab.process import Process
from rvpn.lab.records import STEADY, Arrival, Gap, Log, Progress, longest_gap, missing, steady
from rvpn.lab.series import ALL_DEAD, CUT_TO_GATEWAY, Series, Terms, Trial
from rvpn.lab.topology import Topology

#: Seconds that all gateways are dead.
DEAD_TIME = 1.0
#: Seconds to wait at most, at random, before a fault: timers run in the services, and it is to come at any
#: point of them.
_PHASE = 0.5
#: Seconds to watch at least, and at most.
_SHORTEST_TRIAL, _LONGEST_TRIAL = 0.5, 30.0
#: Seconds in which all must be well again.
_HEALING_TIME = 40.0
_POLL = 0.05


def ignore(_trial: Trial) -> None:
    """Do nothing with a trial that is done."""


class Bench:
    """A laboratory in which traffic flows without end, and gateways are broken one after another."""

    def __init__(self, lab: Lab, terms: Terms, resources: ExitStack) -> None:
        self.lab, self._terms, self._resources = lab, terms, resources
        self._processes: list[Process] = []
        target = lab.topology.target_names[0]
        ipv4, ipv6 = map(str, lab.topology.lan_addresses(target))
        self.pings = Log(lab.directory / "pings", Arrival)
        self.transfer = Log(lab.directory / "transfer", Progress)
        self._monitor("client", "ping", ipv4, self.pings.path)
        self._monitor("client", "transfer", ipv6, self.transfer.path)
        self.inbound = Log(lab.directory / "inbound", Arrival)
        self._random = Random(1)  # noqa: S311 (repeatable)

    @classmethod
    def start(cls, terms: Terms, family: int = 4, mechanism: Mechanism = Mechanism.NOISE) -> Self:
        """Start the laboratory, the services and the traffic. Raises `LocalError`."""
        with ExitStack() as resources:
            lab = resources.enter_context(Lab.start(Topology(family, targets=1, proxy_arp=True)))
            services.configure(lab, {Role.CLIENT: terms.general()}, mechanism)
            services.start_all(lab)
            lab.serve_targets()
            bench = cls(lab, terms, resources)
            bench._resources = resources.pop_all()
            return bench

    def _stream(self) -> None:
        """
        Send datagrams from a target to the client, which nobody answers.

        A gateway that no longer hears the client goes on to bring them, and looks alive but for X8.
        """
        inner = self.lab.topology.inner_addresses[0]
        self._monitor("client", "receive", inner, self.inbound.path)
        self._monitor(self.lab.topology.target_names[0], "send", inner)

    def _monitor(self, node: str, *arguments: object) -> None:
        self._processes.append(self._resources.enter_context(self.lab.start_monitor(node, *arguments)))

    def __enter__(self) -> Self:
        """Return the bench itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """End the traffic and the laboratory."""
        self._resources.close()

    # --- Trials ----------------------------------------------------------------------------------

    def series(self, fault: str, trials: int, told: Callable[[Trial], None] = ignore) -> Series:
        """
        Break the gateway in use so many times; each trial is `told` at once.

        Raises `LocalError` if the laboratory is not well again after a fault.
        """
        if fault == CUT_TO_GATEWAY and not self.inbound.path.exists():
            self._stream()
        done = []
        for _ in range(trials):
            done.append(self.trial(fault))
            told(done[-1])
        return Series(fault, self._terms, self.lab.topology.family, tuple(done))

    def trial(self, fault: str) -> Trial:
        """Break the gateway in use, wait until traffic flows again, and heal it. Raises `LocalError`."""
        # All of them at once need no standby.
        standby = 0 if fault == ALL_DEAD else self._terms.standby
        self.wait_well(standby)
        time.sleep(_PHASE * self._random.random())
        left = services.in_use(self.lab) or ""
        before, bound = self.transfer.read()[-1], self._bound(fault)
        begun = time.monotonic()
        since = self._inflict(fault, left)
        self._watch(since)
        healed_at = time.monotonic()
        taken = services.in_use(self.lab) or ""
        self._heal(fault, left)
        self._wait_passable(left)
        self.wait_well(standby)
        after = self.transfer.read()[-1]
        gap = self._silence(since, healed_at)
        if fault == ALL_DEAD:
            gap = Gap(max(gap.begin, since), gap.end)
        return Trial(
            at=begun,
            left=left,
            taken=taken,
            bound=bound,
            outage=_outage(gap),
            pings_lost=missing(self.pings.read(), begun, healed_at),
            stall=longest_gap((each.when for each in self.transfer.read()), begun, after.when).length,
            disturbance=_outage(self._silence(healed_at, time.monotonic())),
            inbound=self._inbound(gap),
            false_moves=self._false_moves(time.time() - (time.monotonic() - begun), left, fault),
            bytes_verified=after.verified - before.verified,
            bytes_wrong=after.wrong - before.wrong,
            tcp_broken=after.broken - before.broken,
        )

    def _bound(self, fault: str) -> float:
        """Return what the client's policy promises now, and what this fault takes beyond that."""
        bound: float = services.ask_status(self.lab, "client")["promise"]["bound"]
        if fault == CUT_TO_GATEWAY:
            return bound + self._terms.confirm
        if fault == ALL_DEAD:
            return bound + self.lab.topology.gateways * EXCHANGE_TIME + BACKOFF_LAST
        return bound

    def _inflict(self, fault: str, gateway: str) -> float:
        """Break it, and return since when it could have been noticed."""
        since = time.monotonic()
        if fault != ALL_DEAD:
            faults.FAULTS[fault].inflict(self.lab, gateway)
            return since
        for name in self.lab.topology.gateway_names:
            faults.kill(self.lab, name)
        time.sleep(DEAD_TIME)
        services.start(self.lab, gateway)
        return time.monotonic()

    def _watch(self, since: float) -> None:
        """Return some time after the fault when pings are answered steadily, or it takes too long."""
        time.sleep(_SHORTEST_TRIAL)
        while not self._steady() and time.monotonic() < since + _LONGEST_TRIAL:
            time.sleep(_POLL)

    def _silence(self, since: float, until: float) -> Gap:
        return longest_gap((reply.received for reply in self.pings.read()), since, until)

    def _heal(self, fault: str, gateway: str) -> None:
        if fault == ALL_DEAD:
            running = self.lab.status()["processes"]
            services.start(self.lab, *(set(self.lab.topology.gateway_names) - set(running)))
        elif undo := faults.FAULTS[fault].undo:
            faults.FAULTS[undo].inflict(self.lab, gateway)

    def _false_moves(self, since: float, broken: str, fault: str) -> int:
        """Count the entries of the client's journal, since a time of day, about gateways that were well."""
        well = set(self.lab.topology.gateway_names) - {broken} if fault != ALL_DEAD else ()
        addresses = {str(self.lab.topology.gateway_address(name)) for name in well}
        journal = services.ask_status(self.lab, "client")["failovers"]
        return sum(change["time"] > since and change["left"] in addresses for change in journal)

    def _inbound(self, gap: Gap) -> int:
        arrivals = self.inbound.read() if self.inbound.path.exists() else ()
        return sum(gap.begin < each.received < gap.end for each in arrivals)

    # --- Health ----------------------------------------------------------------------------------

    def _wait_passable(self, gateway: str) -> None:
        """
        Return when packets pass on both sides of a gateway.

        An interface that came up is not enough: a bridge may notice that up to a second later.
        """
        lab, topology = self.lab, self.lab.topology
        ends = {"client": topology.gateway_address(gateway), gateway: topology.lan_addresses("target1")[0]}
        for node, address in ends.items():
            deadline = time.monotonic() + _HEALING_TIME
            while not lab.traffic(node, "ping", address, "--count", 1, "--wait", 0.1)["received"]:
                if time.monotonic() > deadline:
                    raise LocalError(f"no packet comes back from {address} to {node}")

    def wait_well(self, standby: int) -> None:
        """
        Return when nothing is wrong and so many standbys are there.

        Raises `LocalError` with what is still wrong after a long time.
        """
        deadline = time.monotonic() + _HEALING_TIME
        while problem := next(self._problems(standby), None):
            if time.monotonic() > deadline:
                raise LocalError(f"not well again after {_HEALING_TIME:g} s: {problem}\n{self._logs()}")
            time.sleep(_POLL)

    def _problems(self, standby: int) -> Iterator[str]:
        """Yield what keeps the next trial from beginning."""
        if not all(process.running() for process in self._processes):
            raise LocalError(f"the traffic ended by itself\n{self._logs()}")
        for name in self.lab.topology.gateway_names:
            if (status := _status(self.lab, name)["status"]) != "ok":
                yield f"{name} says {status}"
        sessions = services.ask_status(self.lab, "client")["sessions"]
        wanted = 1 + min(standby, self.lab.topology.gateways - 1)
        if len(sessions) < wanted or not any(session["in_use"] for session in sessions):
            yield f"the client has {len(sessions)} sessions of {wanted}"
        if not self._steady():
            yield "pings are not answered"
        progress = self.transfer.read()[-1:]
        if not progress or time.monotonic() - progress[0].when > STEADY:
            yield "the transfer stands still"

    def _steady(self) -> bool:
        return steady(self.pings.read(), PING_INTERVAL, time.monotonic())

    def _logs(self) -> str:
        names = ("client", *self.lab.topology.gateway_names)
        return "\n".join(f"{name}:\n{tail(services.log_file(self.lab, name))}" for name in names)


def _outage(gap: Gap) -> float:
    """Return how long nothing got through, of pings that are answered every PING_INTERVAL otherwise."""
    return max(0.0, gap.length - PING_INTERVAL)


def _status(lab: Lab, name: str) -> Mapping[str, Any]:
    try:
        return services.ask_status(lab, name)
    except LocalError as error:
        return {"status": str(error)}
