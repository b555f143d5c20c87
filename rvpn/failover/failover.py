"""
Failover: which gateway each cluster of a client uses, and when it moves to another (R5, R8, R11, R12, X1, X2,
X4).

    a cluster takes a gateway: `_use` -> its packets go there, it is told so, it is watched (`liveness`)
        -> its session ends: `lost` -> the best live session at once, else a key request (R8)
    a gateway says that it is draining or has lost its LAN (X4), or an earlier one may be back (X2)
        -> others are asked (`seeking`) -> one that proves alive and better is used: `alive`
    standby sessions are kept with the gateways that come next (X1)

What is sent and decided here comes back as actions; `Client` carries the packets.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from rvpn.agenda import Agenda, Appointment
from rvpn.constants import BACKOFF_LAST, CONFIRM_SHARE, HeartbeatMode
from rvpn.failover.cluster import ClusterInUse
from rvpn.failover.journal import Change, FirstPackets, Journal, told
from rvpn.failover.kms import KeyManagementService
from rvpn.failover.liveness import Asker, Liveness
from rvpn.failover.seeking import Seeking
from rvpn.interfaces import Action, IPAddress, RandomSource
from rvpn.policy.model import Policy
from rvpn.session.session_control import Status
from rvpn.session.sessions import Session, SessionCache


class Mover(Asker, Protocol):
    """What failover needs of the client."""

    def authenticate(self, gateway: IPAddress, now: float) -> list[Action]:
        """Begin an exchange with `gateway`, unless one is under way."""

    def claim(self, session: Session, now: float) -> list[Action]:
        """Tell the gateway of `session` that it is used from now on (DESIGN 6)."""

    def send_waiting(self, cluster: ClusterInUse, session: Session, now: float) -> list[Action]:
        """Send the packets that waited for a session."""

    def time_of_day(self) -> float:
        """Return seconds since 1970."""


class Failover:
    """See the module."""

    _policy: Policy

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
        self.liveness = Liveness(mover, self._standbys_of, agenda)
        self._mover = mover
        self._cache = cache
        self._kms = kms
        self._agenda = agenda
        self._random = random
        self._asking: dict[str, Appointment] = {}
        self._retries: dict[IPAddress, Appointment] = {}
        self._seeking = Seeking(self._authenticate, cache, self.liveness)
        self.first_packets = FirstPackets(self.liveness.with_payload)
        #: By the targets of a tunnel entry: its cluster.
        self._led_to: dict[tuple[IPAddress, IPAddress], str] = {}

    def read(self, policy: Policy, clusters: Iterable[ClusterInUse], now: float) -> None:
        """
        Take the settings and clusters of a policy just read; `resume` is to follow.

        A gateway in use stays so if its cluster still has it (R1).
        """
        before = self.clusters
        self.clusters = {cluster.cluster.name: cluster for cluster in clusters}
        self._policy = policy
        earlier = self._predecessors(policy)
        for name, cluster in self.clusters.items():
            predecessor = before.pop(earlier.get(name, name), None)
            if predecessor is not None and not cluster.take_over(predecessor):
                left = predecessor.in_use
                assert left is not None
                self._vacate(cluster, left, "the policy no longer has it", now, failed=False)
        for session in self._cache:
            if not self.using(session):
                self.liveness.unwatch(session)
        self.liveness.read(policy, now)
        self._seeking.read(policy, self.clusters, now)

    def _predecessors(self, policy: Policy) -> dict[str, str]:
        """
        Return which cluster that is gone each new one replaces: that to which its entries led before.

        So AUTO goes on from one access server to the next, each a cluster of its own name (R15).
        """
        before, self._led_to = (
            self._led_to,
            {
                (tunnel.first, tunnel.last): tunnel.cluster.name
                for tunnel in policy.tunnels
                if tunnel.cluster is not None
            },
        )
        known, gone = set(before.values()), set(before.values()) - self.clusters.keys()
        return {
            name: before[targets]
            for targets, name in self._led_to.items()
            if name not in known and before.get(targets) in gone
        }

    def resume(self, now: float) -> list[Action]:
        """Look for what the clusters of a policy just read again lack: gateways, standbys, keys."""
        actions: list[Action] = []
        for name, cluster in self.clusters.items():
            if cluster.vacancy is not None:
                actions += self._go_on(cluster, now, now)
            if cluster.in_use is None and cluster.packets:
                actions += self._kms.request(name, now)
            actions += self._keep_standbys(cluster, now)
        return actions

    def promise(self, now: float) -> dict[str, Any]:
        """
        Return how soon the policy lets a failed gateway be left, defer + 2 x response (R7), and replaced.

        Where the times are `auto` (X7) they are those of the slowest gateway in use, None if there is none.
        `confirm_bound` holds where packets arrive and ours do not (X8), `switch` is what it takes from there
        until another gateway is in use (R3, X1); None: never.
        """
        timing, policy = self.liveness.timing, self._policy
        detectors = [session.detector for session in self._cache if session.detector is not None]
        response = max((detector.response for detector in detectors), default=timing.response)
        defer = max((detector.defer(now) for detector in detectors), default=timing.defer)
        answer = max(response or 0.0, CONFIRM_SHARE * timing.confirm if timing.response is None else 0.0)
        others = max((len(cluster.order) - 1 for cluster in self.clusters.values()), default=0)
        return {
            "mode": timing.mode.value,
            "defer": defer,
            "response": response,
            "bound": None if defer is None or response is None else defer + 2 * response,
            "confirm": timing.confirm,
            "confirm_bound": timing.confirm + 2 * answer if timing.confirm else None,
            "standby": policy.standby,
            "switch": None if not others else 0.0 if policy.standby else others * policy.exchange_time,
        }

    def of(self, gateway: IPAddress) -> Iterator[ClusterInUse]:
        """Return the clusters that name `gateway`."""
        return (cluster for cluster in self.clusters.values() if gateway in cluster)

    def using(self, session: Session) -> list[ClusterInUse]:
        """Return the clusters whose session in use this is."""
        return [cluster for cluster in self.clusters.values() if cluster.in_use is session]

    # --- which gateway is in use --------------------------------------------------------------------------

    def choose(self, cluster: ClusterInUse, now: float) -> list[Action]:
        """Take the first live session in the cluster's order (R5), if there is one."""
        live = cluster.live(self._cache.get)
        return self._use(cluster, live[0], "a packet for it", now) if live else []

    def _use(self, cluster: ClusterInUse, session: Session, reason: str, now: float) -> list[Action]:
        left, change, decided_at = cluster.in_use, cluster.vacancy, cluster.vacant_since
        if change is None:
            change, decided_at = self._change(cluster, left, reason), now
        change.taken = session.name
        change.switch = None if change.left is None else now - decided_at
        change.packets_meanwhile += cluster.waiting
        self.first_packets.expect(session, change, decided_at if cluster.waiting else None)
        if not self.using(session):
            session.used_since = now
        cluster.in_use, cluster.vacancy = session, None
        if left is not None and not self.using(left):
            self.liveness.unwatch(left)
        if cluster.waiting:
            self.liveness.active(now)
        self.liveness.watch(session, now)
        # The claim goes first, so that the answers to the packets behind it find their way back.
        actions = [told(change), *self._mover.claim(session, now)]
        actions += self._mover.send_waiting(cluster, session, now)
        return actions + self._keep_standbys(cluster, now) + self._seeking.seek(cluster, now)

    def _change(self, cluster: ClusterInUse, left: Session | None, reason: str) -> Change:
        """Open an entry of the journal."""
        name = left.name if left is not None else None
        change = Change(self._mover.time_of_day(), cluster.cluster.name, name, None, reason)
        self.journal.add(change)
        return change

    def lost(self, session: Session, reason: str, now: float, *, failed: bool = True) -> list[Action]:
        """
        Hear that `session` ended: its clusters go on with another, at once if there is a live one (R8).

        Of several, those that gave a sign of life since this one was first suspected come first (X1).
        `failed` tells whether the gateway is to blame, or this client's own files were read again.
        """
        suspected_at = session.detector.suspected_at if session.detector is not None else None
        self._seeking.failed(session, now)
        left = self.using(session)
        self.forget(session)
        for cluster in left:
            self._vacate(cluster, session, reason, now, failed=failed)
        actions = [] if left else self.no_keys(session.gateway, now)
        for cluster in left:
            actions += self._go_on(cluster, now if suspected_at is None else suspected_at, now)
        return actions

    def expired(self, session: Session, now: float) -> list[Action]:
        """Hear that keys grew too old, and nobody is to blame: the next payload asks for others (R9)."""
        left = self.using(session)
        self.forget(session)
        for cluster in left:
            self._vacate(cluster, session, "its keys expired", now, failed=False)
        return [action for cluster in left for action in _tell(cluster)]

    def forget(self, session: Session) -> None:
        """Expect nothing more of a session that has ended."""
        self.liveness.unwatch(session)
        self.first_packets.forget(session)

    def _vacate(self, cluster: ClusterInUse, left: Session, reason: str, now: float, *, failed: bool) -> None:
        """Leave a cluster without a gateway; only one that failed took time to notice, and packets."""
        cluster.in_use = None
        cluster.vacancy, cluster.vacant_since = self._change(cluster, left, reason), now
        if failed:
            cluster.vacancy.detection = now - left.received_at
            cluster.vacancy.packets_meanwhile = left.packets_out - left.packets_out_when_heard

    def _go_on(self, cluster: ClusterInUse, asked_at: float, now: float) -> list[Action]:
        """Fill a vacancy: by a live session, else by a key request."""
        session = cluster.successor(self._cache.get, asked_at)
        if session is not None:
            return self._use(cluster, session, "", now)
        return [*_tell(cluster), *self._ask_for_keys(cluster.cluster.name, now)]

    def _ask_for_keys(self, name: str, now: float) -> list[Action]:
        """Ask the KMS for a session in place of one that was lost, payload or not (R8: INSTANT alone)."""
        cluster = self.clusters.get(name)
        instant = self.liveness.timing.mode is HeartbeatMode.INSTANT
        if cluster is None or cluster.vacancy is None or not instant:
            return []
        return self._kms.request(name, now)

    def rejected(self, name: str) -> None:
        """Hear that no gateway of a cluster gave keys: ask again after the back-off (R3, R8)."""
        if name in self._asking:
            self._asking[name].cancel()
        barred = self._kms.barred_until(name)
        self._asking[name] = self._agenda.at(barred, lambda now: self._ask_for_keys(name, now))

    # --- signs of life ------------------------------------------------------------------------------------

    def established(self, session: Session, now: float, *, called: bool, renewed: bool) -> list[Action]:
        """
        Hear that new keys with a gateway are confirmed: it is alive.

        `called` tells that the gateway began the exchange: it is used if it stands earlier in the order
        (R12). `renewed` tells that there were keys before; a gateway that lost them knows of no claim (R16).
        """
        actions = self._mover.claim(session, now) if renewed and self.using(session) else []
        for cluster in self.of(session.gateway):
            if cluster.in_use is None and (cluster.vacancy is not None or cluster.packets or called):
                actions += self._use(cluster, session, "it gave keys", now)
        actions += self._reconsider(session, now)
        return actions + self.alive(session, now, called=called)

    def alive(self, session: Session, now: float, *, called: bool = False) -> list[Action]:
        """Hear that a gateway proved alive: clusters that are better off with it move there (X2, X4, R12)."""
        actions: list[Action] = []
        for cluster in self.of(session.gateway):
            current = cluster.in_use
            if current is None or current is session:
                continue
            if session.status < current.status:
                reason = f"gateway {current.name} says: {current.status.words}"
                actions += self._use(cluster, session, reason, now)
            elif self._may_return(cluster, current, session, now, called=called):
                reason = "it calls" if called else "it is back and stands earlier in the order"
                actions += self._use(cluster, session, reason, now)
        return actions

    def _may_return(
        self, cluster: ClusterInUse, current: Session, session: Session, now: float, *, called: bool
    ) -> bool:
        earlier = cluster.rank(session) < cluster.rank(current) and session.status <= current.status
        return (
            earlier and (called or self._policy.failback) and self._seeking.returnable(session.gateway, now)
        )

    def answered(self, session: Session, sequence: int, now: float) -> tuple[bool, list[Action]]:
        """Hear an answer to a heartbeat; the first value tells whether it was waited for (DESIGN 6)."""
        expected = self.liveness.answered(session, sequence, now)
        return expected, self.alive(session, now) if expected else []

    def _reconsider(self, session: Session, now: float) -> list[Action]:
        """Look for better gateways for the clusters that use one whose status is not ok (X4)."""
        if session.status is Status.OK:
            return []

        def seek(now: float) -> list[Action]:
            return [action for cluster in self.using(session) for action in self._seeking.seek(cluster, now)]

        return self.liveness.when_active(session, seek, now)

    def told_status(self, session: Session, now: float) -> list[Action]:
        """Hear that a gateway's status has changed (X4)."""
        return self._reconsider(session, now) + self.alive(session, now)

    def network_changed(self, now: float) -> list[Action]:
        """
        Hear that links or addresses of this host changed, or that it slept: ask and try at once (R3, X6).
        """
        self._kms.end_backoff()
        for appointment in self._retries.values():
            appointment.cancel()
        self._retries.clear()
        actions = [action for session in self._cache for action in self.liveness.hint(session, now)]
        actions += self.liveness.when_active("standbys", self._keep_all_standbys, now)
        return actions + [action for name in self.clusters for action in self._ask_for_keys(name, now)]

    # --- standbys (X1) ------------------------------------------------------------------------------------

    def _keep_standbys(self, cluster: ClusterInUse, now: float) -> list[Action]:
        """Authenticate with the gateways that come next, as many as `Standby` says (X1)."""
        actions: list[Action] = []
        for gateway in cluster.standbys(self._policy.standby):
            if self._cache.get(gateway) is None:
                actions += self._authenticate(gateway, now)
        return actions

    def _authenticate(self, gateway: IPAddress, now: float) -> list[Action]:
        """Begin an exchange with `gateway`, unless the last one came to nothing a moment ago."""
        return [] if gateway in self._retries else self._mover.authenticate(gateway, now)

    def _keep_all_standbys(self, now: float) -> list[Action]:
        return [action for cluster in self.clusters.values() for action in self._keep_standbys(cluster, now)]

    def _standbys_of(self, suspect: Session) -> set[Session]:
        """Return the sessions that the clusters of a suspect could go on with, and that are not watched."""
        live = (session for cluster in self.using(suspect) for session in cluster.live(self._cache.get))
        return {session for session in live if session.detector is None}

    def is_wanted(self, session: Session) -> bool:
        """Tell whether a session is in use or a standby, and so to be renewed when its keys are old."""
        return any(
            cluster.in_use is session or session.gateway in cluster.standbys(self._policy.standby)
            for cluster in self.of(session.gateway)
        )

    def no_keys(self, gateway: IPAddress, now: float) -> list[Action]:
        """Hear that there is no session with a gateway: as a standby it is asked again later."""
        if gateway not in self._retries:
            delay = BACKOFF_LAST * (0.75 + 0.5 * self._random.random())
            self._retries[gateway] = self.liveness.later(
                gateway, now + delay, lambda later: self._retry(gateway, later)
            )
        return []

    def _retry(self, gateway: IPAddress, now: float) -> list[Action]:
        self._retries.pop(gateway, None)
        return [action for cluster in self.of(gateway) for action in self._keep_standbys(cluster, now)]


def _tell(cluster: ClusterInUse) -> list[Action]:
    """Return the log line of a vacancy, once: files that are read again change nothing about it."""
    if cluster.vacancy is None or cluster.told is cluster.vacancy:
        return []
    cluster.told = cluster.vacancy
    return [told(cluster.vacancy)]
