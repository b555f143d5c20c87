"""
Which gateways a client asks whether they are better than the one in use, and when (X2, X4).

    the one in use is not well -> each of the others, at once and every BACKOFF_FIRST
    an earlier one was left, and `Failback = yes` -> that one, every hold-down
        -> it proves that it lives, by an answer or by keys -> `Failover.alive` moves there if it is better
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from rvpn.agenda import Appointment
from rvpn.constants import BACKOFF_FIRST, BACKOFF_LAST, HeartbeatMode
from rvpn.failover.cluster import ClusterInUse, HoldDowns
from rvpn.failover.liveness import Liveness
from rvpn.interfaces import Action, IPAddress
from rvpn.policy.model import Policy
from rvpn.rate import Rate
from rvpn.session.sessions import SAPair, Session, SessionCache

#: How often in a second others are asked whether they are better.
SEEKS = 10

#: Begins an exchange with a gateway, unless one is under way or came to nothing a moment ago.
Authenticate = Callable[[IPAddress, float], list[Action]]


class Seeking:
    """See the module."""

    _policy: Policy
    _clusters: Mapping[str, ClusterInUse]

    def __init__(self, authenticate: Authenticate, cache: SessionCache, liveness: Liveness) -> None:
        self._authenticate = authenticate
        self._cache = cache
        self._liveness = liveness
        self._hold_downs = HoldDowns()
        self._planned: dict[str, Appointment] = {}
        self._rate = Rate(SEEKS)

    def read(self, policy: Policy, clusters: Mapping[str, ClusterInUse], now: float) -> None:
        """Go on by a policy just read: its hold-down begins now where the old one is to end later."""
        self._policy, self._clusters = policy, clusters
        for name, cluster in clusters.items():
            planned = self._planned.get(name)
            delay = self._delay(cluster)
            if delay is None or (planned and planned.act and planned.when <= now + delay):
                continue
            self._plan(name, now + delay)

    def failed(self, session: Session, now: float) -> None:
        """Hear that the gateway of `session` failed: it is not returned to before its hold-down is over."""
        self._hold_downs.failed(session, self._policy.failback_hold_down, now)

    def returnable(self, gateway: IPAddress, now: float) -> bool:
        """Tell whether the hold-down of a gateway is over (X2)."""
        return self._hold_downs.over(gateway, self._policy.failback_hold_down, now)

    def seek(self, cluster: ClusterInUse, now: float) -> list[Action]:
        """
        Look for a gateway that is better than the one in use, and again later while there may be one.

        Those we have a session with are asked by a heartbeat, the others for keys. However often a gateway
        changes its mind, the others are asked at most SEEKS times a second.
        """
        name, current, delay = cluster.cluster.name, cluster.in_use, self._delay(cluster)
        if current is None or delay is None:
            if name in self._planned:
                self._planned.pop(name).cancel()
            return []
        self._plan(name, now + delay)
        if not self._rate.allows(now):
            return []
        candidates = list(self._candidates(cluster, current, now))
        return [action for gateway in candidates for action in self._approach(gateway, current, now)]

    def _delay(self, cluster: ClusterInUse) -> float | None:
        """Return after how many seconds to look again; None: no gateway can be better than the one in use."""
        current = cluster.in_use
        if current is None:
            return None
        if current.status:
            return BACKOFF_FIRST
        return self._policy.failback_hold_down if self._earlier(cluster, current) else None

    def _plan(self, name: str, when: float) -> None:
        if name in self._planned:
            self._planned[name].cancel()
        self._planned[name] = self._liveness.later(name, when, lambda now: self._again(name, now))

    def _again(self, name: str, now: float) -> list[Action]:
        return self.seek(self._clusters[name], now) if name in self._clusters else []

    def _candidates(self, cluster: ClusterInUse, current: Session, now: float) -> Iterator[IPAddress]:
        """
        Return the gateways that may be better than `current`: if it is not well that is each of them, for
        what they said of themselves may be long ago (X4).
        """
        for gateway in cluster.order:
            earlier = gateway in self._earlier(cluster, current) and self.returnable(gateway, now)
            if gateway != current.gateway and (current.status or earlier):
                yield gateway

    def _earlier(self, cluster: ClusterInUse, current: Session) -> Iterable[IPAddress]:
        """Return the gateways that a cluster goes back to when they are well again (X2)."""
        return cluster.order[: cluster.rank(current)] if self._policy.failback else ()

    def _approach(self, gateway: IPAddress, current: Session, now: float) -> list[Action]:
        """
        Let a gateway prove that it lives, and say how it is.

        That is by an answer; by keys where heartbeats are not sent (R9) or tell too little, or the last was
        not answered: who restarted twice has no proof that our keys are gone (X3). Keys are dear: where those
        we have are fresh and came with no better status, they tell enough.
        """
        session = self._cache.get(gateway)
        pair = session.sending if session is not None else None
        if session is None or pair is None:
            return self._authenticate(gateway, now)
        if self._tells(session, pair):
            silent = self._liveness.unanswered(session)
            asked = self._liveness.probe(session, now)
            return [*asked, *self._authenticate(gateway, now)] if silent else asked
        fresh = now < pair.made_at + BACKOFF_LAST
        return [] if fresh and 0 < current.status <= session.status else self._authenticate(gateway, now)

    def _tells(self, session: Session, pair: SAPair) -> bool:
        """Tell whether an answer can show that a gateway is fit; a literal one does not say how it is."""
        literal = pair.literal_heartbeats and session.status
        return self._liveness.timing.mode is not HeartbeatMode.NONE and not literal
