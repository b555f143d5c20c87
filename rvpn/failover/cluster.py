"""
Which gateway of a cluster is in use (R5), which come after it, and what waits while none is (R2).

The order of a cluster is the KMS's (R1). These are the questions that `rvpn.failover.failover` asks; what is
done about the answers stands there.
"""

from collections.abc import Callable, Sequence

from rvpn.constants import LONGEST_HOLD_DOWN, QUEUE_BYTES, QUEUE_LENGTH
from rvpn.datapath.waiting import WaitingPackets
from rvpn.failover.journal import Change
from rvpn.interfaces import IPAddress
from rvpn.policy.model import Cluster
from rvpn.session.sessions import Session

SessionOf = Callable[[IPAddress], Session | None]


class ClusterInUse:
    """
    One cluster of the client's policy: its order, the session in use, and the packets that wait for one.
    """

    def __init__(self, cluster: Cluster, order: Sequence[IPAddress]) -> None:
        self.cluster = cluster
        self.order = order
        self.in_use: Session | None = None
        #: What left the cluster without a gateway, and when, until one is found.
        self.vacancy: Change | None = None
        self.vacant_since = 0.0
        #: The vacancy of which the log has told.
        self.told: Change | None = None
        self.packets = WaitingPackets(QUEUE_LENGTH, QUEUE_BYTES)

    @property
    def waiting(self) -> int:
        """How many packets wait."""
        return len(self.packets)

    def __contains__(self, gateway: object) -> bool:
        return gateway in self.cluster.members

    def rank(self, session: Session) -> int:
        """Return the place of the session's gateway in the order, 0 for the first."""
        return self.order.index(session.gateway)

    def live(self, session_of: SessionOf) -> list[Session]:
        """Return the live sessions with gateways of this cluster, in its order."""
        sessions = (session_of(gateway) for gateway in self.order)
        return [session for session in sessions if session is not None]

    def successor(self, session_of: SessionOf, asked_at: float) -> Session | None:
        """
        Return the session to go on with after a failure, or None (R8).

        Those whose gateways gave a sign of life since `asked_at` come first (X1), then those whose status is
        better (X4), then the cluster's order (R5).
        """
        return min(
            self.live(session_of),
            key=lambda session: (session.received_at < asked_at, session.status, self.rank(session)),
            default=None,
        )

    def standbys(self, count: int) -> list[IPAddress]:
        """Return the next `count` gateways after the one in use, cyclically (X1)."""
        if self.in_use is None:
            return []
        start = self.rank(self.in_use) + 1
        after = [*self.order[start:], *self.order[: start - 1]]
        return after[:count]

    def take_over(self, before: "ClusterInUse") -> bool:
        """
        Go on where the cluster of this name in an earlier policy was; return whether its gateway stays (R1).
        """
        self.vacancy, self.vacant_since, self.packets = before.vacancy, before.vacant_since, before.packets
        self.told = before.told
        if before.in_use is not None and before.in_use.gateway not in self:
            return False
        self.in_use = before.in_use
        return True


class HoldDowns:
    """For how long gateways that failed are not returned to (X2)."""

    def __init__(self) -> None:
        self._failures: dict[IPAddress, tuple[float, float]] = {}

    def failed(self, session: Session, hold_down: float, now: float) -> None:
        """
        Hold the gateway of `session` down for `hold_down` seconds, twice as long as the last time if it was
        used for less than three times that since.
        """
        _, times = self._failures.get(session.gateway, (now, 0.5))
        if session.used_since is not None:
            brief = now - session.used_since < 3 * _held(hold_down, times)
            times = min(2 * times, LONGEST_HOLD_DOWN) if brief else 1.0
        self._failures[session.gateway] = now, max(1.0, times)

    def over(self, gateway: IPAddress, hold_down: float, now: float) -> bool:
        """Tell whether a gateway may be returned to, by the hold-down that the policy has now."""
        if gateway not in self._failures:
            return True
        failed_at, times = self._failures[gateway]
        return now >= failed_at + _held(hold_down, times)


def _held(hold_down: float, times: float) -> float:
    return max(hold_down, min(times * hold_down, LONGEST_HOLD_DOWN))
