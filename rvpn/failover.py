"""
Failover: the client watches the gateways in use, and moves its clusters to others (R5 to R9, X1, X2, X4, X6,
X8).

    a cluster takes a gateway: `use` -> a failure detector watches it (R6) -> heartbeats (R7), hints (X6)
        -> failed: its session ends (R8) -> `lost` -> the best live session, else a key request
    a gateway says that it is draining or has lost its LAN (X4), or an earlier one may be back (X2)
        -> others are asked -> one that proves alive and better is used: `alive`
    standby sessions are kept with the gateways that come next (X1)

What is sent and decided here comes back as actions; `Client` carries the packets.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from rvpn.agenda import Agenda, Appointment
from rvpn.cluster import ClusterInUse
from rvpn.constants import BACKOFF_FIRST, BACKOFF_LAST, LONGEST_HOLD_DOWN, HeartbeatMode
from rvpn.heartbeat import FailureDetector, Timing, Verdict
from rvpn.interfaces import Action, IPAddress, RandomSource
from rvpn.journal import Change, Journal, told
from rvpn.kms import KeyManagementService
from rvpn.policy.model import Policy
from rvpn.session_control import Status
from rvpn.sessions import Session, SessionCache


class Mover(Protocol):
    """What failover needs of the client."""

    def authenticate(self, gateway: IPAddress, now: float) -> list[Action]:
        """Begin an exchange with `gateway`, unless one is under way."""

    def heartbeat(self, session: Session) -> tuple[list[Action], int]:
        """Return a heartbeat to the gateway of `session`, and its sequence number."""

    def claim(self, session: Session, now: float) -> list[Action]:
        """Tell the gateway of `session` that it is used from now on (DESIGN 6)."""

    def fail(self, session: Session, reason: str, now: float) -> list[Action]:
        """End `session`, tell its gateway so (R8), and call `lost`."""

    def send_waiting(self, cluster: ClusterInUse, session: Session, now: float) -> list[Action]:
        """Send the packets that waited for a session."""

    def time_of_day(self) -> float:
        """Return seconds since 1970."""


class Failover:
    """See the module."""

    def __init__(
        self,
        mover: Mover,
        cache: SessionCache,
        kms: KeyManagementService,
        agenda: Agenda,
        random: RandomSource,
    ) -> None:
        self.clusters: dict[str, ClusterInUse] = {}
        self.journal = Journal()
        self._mover = mover
        self._cache = cache
        self._kms = kms
        self._agenda = agenda
        self._random = random
        self._timers: dict[Session, Appointment] = {}
        self._probes: dict[Session, tuple[int, float]] = {}
        self._retries: dict[IPAddress, Appointment] = {}
        self._seeking: dict[str, Appointment] = {}
        self._failures: dict[IPAddress, tuple[float, float]] = {}
        self._expecting: dict[Session, list[tuple[Change, float, int]]] = {}

    def read(self, policy: Policy, clusters: dict[str, ClusterInUse]) -> None:
        """Take the clusters and settings of a policy just read."""
        self.clusters = clusters
        self._policy = policy
        self._timing = Timing(
            policy.heartbeat,
            policy.heartbeat_response_time,
            policy.heartbeat_defer_time,
            policy.heartbeat_confirm_time,
        )

    def promise(self, now: float) -> dict[str, str | float]:
        """
        Return how soon the policy lets a failed gateway be left: defer + 2 x response (R7).

        Where the times are `auto` (X7) they are those of the slowest gateway in use.
        """
        detectors = [session.detector for session in self._cache if session.detector is not None]
        response = max((detector.response for detector in detectors), default=self._timing.response or 0.0)
        defer = max((detector.defer(now) for detector in detectors), default=self._timing.defer or 0.0)
        return {
            "mode": self._timing.mode.value,
            "defer": defer,
            "response": response,
            "bound": defer + 2 * response,
        }

    def of(self, gateway: IPAddress) -> Iterator[ClusterInUse]:
        """Return the clusters that name `gateway`."""
        return (cluster for cluster in self.clusters.values() if gateway in cluster)

    def using(self, session: Session) -> list[ClusterInUse]:
        """Return the clusters whose session in use this is."""
        return [cluster for cluster in self.clusters.values() if cluster.in_use is session]

    # --- which gateway is in use
    # ------------------------------------------------------------------------------

    def choose(self, cluster: ClusterInUse, now: float) -> list[Action]:
        """Take the first live session in the cluster's order (R5), if there is one."""
        live = cluster.live(self._cache.get)
        return self._use(cluster, live[0], "a packet for it", now) if live else []

    def _use(self, cluster: ClusterInUse, session: Session, reason: str, now: float) -> list[Action]:
        left, cluster.in_use = cluster.in_use, session
        change = cluster.vacancy
        if change is None:
            change = Change(
                self._mover.time_of_day(), cluster.cluster.name, left.name if left else None, None, reason
            )
            self.journal.add(change)
        cluster.vacancy = None
        change.taken = session.name
        if left is not None:
            change.switch = 0.0
            self._unwatch(left)
        self._expect(session, change, now)
        actions = self._mover.send_waiting(cluster, session, now)
        actions += [told(change), *self._mover.claim(session, now), *self._watch(session, now)]
        return actions + self._keep_standbys(cluster, now) + self._seek(cluster, now)

    def lost(self, session: Session, reason: str, now: float, asked_at: float | None = None) -> list[Action]:
        """
        Hear that `session` ended: its clusters go on with another, at once if there is a live one (R8).

        `asked_at` is when its gateway was first suspected: others that gave a sign of life since come first
        (X1).
        """
        self._forget(session)
        self._note_failure(session.gateway, now)
        actions: list[Action] = []
        for cluster in self.using(session):
            cluster.in_use = None
            change = Change(
                self._mover.time_of_day(),
                cluster.cluster.name,
                session.name,
                None,
                reason,
                detection=now - session.received_at,
                packets_meanwhile=session.packets_out - session.packets_out_then,
            )
            self.journal.add(change)
            cluster.vacancy = change
            actions += self._go_on(cluster, asked_at if asked_at is not None else now, now)
        return actions

    def _go_on(self, cluster: ClusterInUse, asked_at: float, now: float) -> list[Action]:
        session = cluster.successor(self._cache.get, asked_at)
        if session is not None:
            assert cluster.vacancy is not None
            cluster.vacancy.switch = 0.0
            return self._use(cluster, session, "", now)
        assert cluster.vacancy is not None
        actions: list[Action] = [told(cluster.vacancy)]
        if self._policy.heartbeat is HeartbeatMode.INSTANT:
            actions += self._ask_for_keys(cluster, now)
        return actions

    def _ask_for_keys(self, cluster: ClusterInUse, now: float) -> list[Action]:
        """
        Ask the KMS even without payload, and again after its back-off, until there is a session (R8,
        INSTANT).
        """
        if cluster.in_use is not None or self.clusters.get(cluster.cluster.name) is not cluster:
            return []
        barred = self._kms.barred_until(cluster.cluster.name)
        again = max(barred, now + BACKOFF_FIRST)
        self._agenda.at(again, lambda later: self._ask_for_keys(cluster, later))
        return self._kms.request(cluster.cluster.name, now) if barred <= now else []

    # --- signs of life
    # ----------------------------------------------------------------------------------------

    def established(self, session: Session, now: float, *, called: bool) -> list[Action]:
        """
        Hear that new keys with a gateway are confirmed: it is alive.

        `called` tells that the gateway began the exchange: it is used if it stands earlier in the order
        (R12).
        """
        actions: list[Action] = []
        for cluster in self.of(session.gateway):
            if cluster.in_use is None and (cluster.vacancy is not None or cluster.packets or called):
                actions += self._use(cluster, session, "it gave keys", now)
        return actions + self.alive(session, now, called=called)

    def alive(self, session: Session, now: float, *, called: bool = False) -> list[Action]:
        """Hear that a gateway proved alive: clusters that are better off with it move there (X2, X4, R12)."""
        actions: list[Action] = []
        for cluster in self.of(session.gateway):
            current = cluster.in_use
            if current is None or current is session:
                continue
            if session.status < current.status:
                words = current.status.name.lower().replace("_", " ")
                actions += self._use(cluster, session, f"gateway {current.name} says: {words}", now)
            elif self._may_return(cluster, current, session, now, called=called):
                reason = "it calls" if called else "it is back and stands earlier in the order"
                actions += self._use(cluster, session, reason, now)
        return actions

    def _may_return(
        self, cluster: ClusterInUse, current: Session, session: Session, now: float, *, called: bool
    ) -> bool:
        earlier = cluster.rank(session) < cluster.rank(current) and session.status <= current.status
        return earlier and (called or self._policy.failback) and now >= self._held_until(session.gateway)

    def answered(self, session: Session, sequence: int, now: float) -> tuple[bool, list[Action]]:
        """Hear an answer to a heartbeat; the first value tells whether it was waited for (DESIGN 6)."""
        if session.detector is not None:
            expected = session.detector.answered(sequence, now)
            self._rearm(session)
            return expected, self._reconsider(session, now)
        probe, sent_at = self._probes.get(session, (None, 0.0))
        if probe != sequence:
            return False, []
        del self._probes[session]
        session.round_trip.measured(now - sent_at)
        return True, self.alive(session, now)

    def told_status(self, session: Session, now: float) -> list[Action]:
        """Hear that a gateway's status has changed (X4)."""
        return self._reconsider(session, now) + self.alive(session, now)

    def hint(self, session: Session, now: float) -> list[Action]:
        """Hear that something may be wrong with a gateway: if it is in use, ask it at once (X6)."""
        if session.detector is None:
            return []
        return self._carry_out(session, session.detector.hint(now), now)

    def payload(self, session: Session, now: float) -> list[Action]:
        """Hear that a payload packet was sent to a gateway whose heartbeat waits for one (R9, DEFERRED)."""
        if session.detector is None:
            return []
        return self._carry_out(session, session.detector.payload(now), now)

    def received(self, session: Session, now: float) -> list[Action]:
        """Complete the journal's entries that wait for a packet through the gateway of `session`."""
        actions: list[Action] = []
        for change, decided_at, packets in self._expecting.pop(session, ()):
            if session.packets_in == packets:
                self._expecting.setdefault(session, []).append((change, decided_at, packets))
                continue
            change.first_packet = now - decided_at
            actions.append(told(change))
        return actions

    @property
    def expecting(self) -> bool:
        """Whether any entry of the journal waits for a packet."""
        return bool(self._expecting)

    def _expect(self, session: Session, change: Change, now: float) -> None:
        self._expecting.setdefault(session, []).append((change, now, session.packets_in))

    # --- watching a gateway in use
    # ----------------------------------------------------------------------------

    def _watch(self, session: Session, now: float) -> list[Action]:
        """Begin to watch a gateway that has just come into use (R6)."""
        if session.detector is None:
            session.detector = FailureDetector(
                self._timing, session, session.round_trip, now, session.shortest_defer
            )
            self._probes.pop(session, None)
            self._rearm(session)
        return []

    def _unwatch(self, session: Session) -> None:
        """Stop watching a gateway that no cluster uses any more: it gets no more heartbeats (R6)."""
        if not self.using(session):
            session.detector = None
            session.heartbeat_follows = False
            timer = self._timers.pop(session, None)
            if timer is not None:
                timer.cancel()

    def _rearm(self, session: Session) -> None:
        assert session.detector is not None
        session.heartbeat_follows = session.detector.wants_payload
        deadline = session.detector.deadline()
        timer = self._timers.get(session)
        if timer is not None:
            if timer.act is not None and timer.when == deadline:
                return
            timer.cancel()
            del self._timers[session]
        if deadline is not None:
            self._timers[session] = self._agenda.at(deadline, lambda now: self._look(session, now))

    def _look(self, session: Session, now: float) -> list[Action]:
        if session.detector is None:
            return []
        return self._carry_out(session, session.detector.advance(now), now)

    def _carry_out(self, session: Session, verdict: Verdict, now: float) -> list[Action]:
        detector = session.detector
        assert detector is not None
        if verdict is Verdict.FAILED:
            return self._mover.fail(session, "two heartbeats without an answer", now)
        actions: list[Action] = []
        if verdict is Verdict.HEARTBEAT:
            actions, sequence = self._mover.heartbeat(session)
            detector.asked(sequence, now)
            if detector.suspicious:
                actions += self._ask_standbys(session, now)
            else:
                session.packets_out_then = session.packets_out
        self._rearm(session)
        return actions

    def _ask_standbys(self, suspect: Session, now: float) -> list[Action]:
        """Ask each standby once, so that the switch goes to one proven alive (X1)."""
        standbys = {
            session
            for cluster in self.using(suspect)
            for session in cluster.live(self._cache.get)
            if session.detector is None
        }
        return [action for session in standbys for action in self._probe(session, now)]

    def _probe(self, session: Session, now: float) -> list[Action]:
        actions, sequence = self._mover.heartbeat(session)
        self._probes[session] = sequence, now
        return actions

    # --- better gateways (X1, X2, X4)
    # -------------------------------------------------------------------------

    def _keep_standbys(self, cluster: ClusterInUse, now: float) -> list[Action]:
        """Authenticate with the gateways that come next, as many as `Standby` says (X1)."""
        actions: list[Action] = []
        for gateway in cluster.standbys(self._policy.standby):
            if self._cache.get(gateway) is None and gateway not in self._retries:
                actions += self._mover.authenticate(gateway, now)
        return actions

    def is_wanted(self, session: Session) -> bool:
        """Tell whether a session is in use or a standby, and so to be renewed when its keys are old."""
        return any(
            cluster.in_use is session or session.gateway in cluster.standbys(self._policy.standby)
            for cluster in self.of(session.gateway)
        )

    def no_keys(self, gateway: IPAddress, now: float) -> list[Action]:
        """Hear that a gateway gave no keys: as a standby it is asked again later."""
        if gateway not in self._retries:
            delay = BACKOFF_LAST * (0.75 + 0.5 * self._random.random())
            self._retries[gateway] = self._agenda.at(now + delay, lambda later: self._retry(gateway, later))
        return []

    def _retry(self, gateway: IPAddress, now: float) -> list[Action]:
        self._retries.pop(gateway, None)
        return [action for cluster in self.of(gateway) for action in self._keep_standbys(cluster, now)]

    def network_changed(self, now: float) -> list[Action]:
        """
        Hear that links or addresses of this host changed, or that it slept: ask and try at once (R3, X6).
        """
        self._kms.end_backoff()
        retries, self._retries = self._retries, {}
        for appointment in retries.values():
            appointment.cancel()
        actions = [action for session in self._cache for action in self.hint(session, now)]
        for cluster in self.clusters.values():
            actions += self._keep_standbys(cluster, now)
            if cluster.vacancy is not None and self._policy.heartbeat is HeartbeatMode.INSTANT:
                actions += self._kms.request(cluster.cluster.name, now)
        return actions

    def _reconsider(self, session: Session, now: float) -> list[Action]:
        """Look for better gateways for the clusters that use one whose status is not ok (X4)."""
        if session.status is Status.OK:
            return []
        return [action for cluster in self.using(session) for action in self._seek(cluster, now)]

    def _seek(self, cluster: ClusterInUse, now: float) -> list[Action]:
        """
        Look for a gateway that is better than the one in use, and again later while there may be one.

        Those we have a session with are asked by a heartbeat, the others for keys; `alive` hears of either.
        """
        name = cluster.cluster.name
        if name in self._seeking or cluster.in_use is None:
            return []
        candidates = list(self._candidates(cluster, cluster.in_use, now))
        if not candidates and not self._returnable(cluster, cluster.in_use):
            return []
        delay = self._policy.failback_hold_down if cluster.in_use.status is Status.OK else BACKOFF_FIRST
        self._seeking[name] = self._agenda.at(now + delay, lambda later: self._seek_again(cluster, later))
        return [action for gateway in candidates for action in self._approach(gateway, now)]

    def _seek_again(self, cluster: ClusterInUse, now: float) -> list[Action]:
        self._seeking.pop(cluster.cluster.name, None)
        return self._seek(self.clusters.get(cluster.cluster.name, cluster), now)

    def _approach(self, gateway: IPAddress, now: float) -> list[Action]:
        session = self._cache.get(gateway)
        return self._mover.authenticate(gateway, now) if session is None else self._probe(session, now)

    def _candidates(self, cluster: ClusterInUse, current: Session, now: float) -> Iterator[IPAddress]:
        """Return the gateways that may be better than `current`."""
        for gateway in cluster.order:
            session = self._cache.get(gateway)
            if session is current or (session is None and gateway in self._retries):
                continue
            better = current.status is not Status.OK and (session is None or session.status < current.status)
            returnable = gateway in self._returnable(cluster, current) and now >= self._held_until(gateway)
            if better or returnable:
                yield gateway

    def _returnable(self, cluster: ClusterInUse, current: Session) -> Iterable[IPAddress]:
        """Return the gateways that a cluster goes back to when they are well again (X2)."""
        return cluster.order[: cluster.rank(current)] if self._policy.failback else ()

    def _note_failure(self, gateway: IPAddress, now: float) -> None:
        """
        Hold down a gateway that failed, twice as long if it failed again soon after it was returned to (X2).
        """
        hold_down = self._policy.failback_hold_down
        failed_at, held = self._failures.get(gateway, (float("-inf"), hold_down))
        again = min(2 * held, LONGEST_HOLD_DOWN) if now - failed_at < 3 * held else hold_down
        self._failures[gateway] = now, again

    def _held_until(self, gateway: IPAddress) -> float:
        failed_at, held = self._failures.get(gateway, (float("-inf"), 0.0))
        return failed_at + held

    def _forget(self, session: Session) -> None:
        session.detector = None
        session.heartbeat_follows = False
        self._probes.pop(session, None)
        self._expecting.pop(session, None)
        timer = self._timers.pop(session, None)
        if timer is not None:
            timer.cancel()
