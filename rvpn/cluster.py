"""
Which gateway of a cluster is in use (R5), which come after it, and what waits while none is (R2).

The order of a cluster is the KMS's (R1). These are the questions that `rvpn.failover` asks; what is done
about the answers stands there.
"""

from collections import deque
from collections.abc import Callable, Sequence

from rvpn.constants import QUEUE_LENGTH
from rvpn.interfaces import IPAddress
from rvpn.journal import Change
from rvpn.policy.model import Cluster
from rvpn.sessions import Session

SessionOf = Callable[[IPAddress], Session | None]


class ClusterInUse:
    """
    One cluster of the client's policy: its order, the session in use, and the packets that wait for one.
    """

    def __init__(self, cluster: Cluster, order: Sequence[IPAddress]) -> None:
        self.cluster = cluster
        self.order = order
        self.in_use: Session | None = None
        #: What left the cluster without a gateway, until one is found.
        self.vacancy: Change | None = None
        self.packets: deque[bytes] = deque()

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

    def take_over(self, before: "ClusterInUse") -> None:
        """Go on where the same cluster of an earlier reading of the policy was (R1)."""
        self.in_use = before.in_use
        self.vacancy = before.vacancy
        self.packets = before.packets

    def wait(self, packet: bytes) -> bool:
        """Queue a packet; return False if the oldest had to be dropped for it (R2)."""
        full = len(self.packets) >= QUEUE_LENGTH
        if full:
            self.packets.popleft()
        self.packets.append(packet)
        return not full

    def take_waiting(self) -> list[bytes]:
        """Return what waited, oldest first, and forget it."""
        packets = list(self.packets)
        self.packets.clear()
        return packets
