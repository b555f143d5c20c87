"""
The key management service (the patent's 8): it picks the gateway, has the key exchange run and answers key
requests.

    request(cluster) -> the cluster's order (R1), failed gateways last (R3) -> one exchange with one gateway
        -> keys confirmed: `confirmed` -> the request is answered
        -> no keys: `given_up` -> the next gateway
        -> no gateway left: the request is rejected, and a back-off before the next

A gateway has at most one exchange at a time, shared by all clusters that want it and by rekeying (R4). The
exchanges themselves are in `rvpn.keyexchange.initiations`.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from rvpn.constants import BACKOFF_FIRST, BACKOFF_LAST
from rvpn.interfaces import Action, Event, Fields, IPAddress, RandomSource
from rvpn.policy.model import Cluster


class Requester(Protocol):
    """Who asks for keys: the client. Each answer returns the actions that it draws."""

    def authenticate(self, gateway: IPAddress, now: float) -> list[Action]:
        """Begin an exchange with `gateway`, unless one is under way."""

    def rejected(self, cluster: str, now: float) -> list[Action]:
        """Hear that no gateway of `cluster` gave a key (R3)."""


@dataclass(slots=True)
class _Request:
    """A key request of a cluster: the gateway being tried, and those to try after it."""

    gateway: IPAddress
    candidates: list[IPAddress] = field(default_factory=list)


class KeyManagementService:
    """See the module."""

    def __init__(self, requester: Requester, random: RandomSource) -> None:
        self._requester = requester
        self._random = random
        self._order: dict[str, list[IPAddress]] = {}
        self._requests: dict[str, _Request] = {}
        self._backoff: dict[str, tuple[float, float]] = {}
        self._given_up: deque[tuple[IPAddress, str]] = deque()
        self.failed_at: dict[IPAddress, float] = {}
        self.established = self.failures = 0

    def read(
        self,
        clusters: Iterable[Cluster],
        *,
        randomize: bool,
        in_use: Mapping[str, IPAddress] = MappingProxyType({}),
    ) -> None:
        """
        Take the clusters of a policy just read, each shuffled once unless `RandomizeClusters = no` (R1).

        Where its members are unchanged those before the one `in_use` are shuffled among themselves, and those
        behind it: no shuffle is to be a reason for returning to another (X2).

        Requests under way are forgotten; who still wants an answer asks again.
        """
        before, self._order = self._order, {cluster.name: list(cluster.members) for cluster in clusters}
        if randomize:
            for name, order in self._order.items():
                self._random.shuffle(order)
                if name in in_use:
                    _keep_place(in_use[name], order, before.get(name, []))
        self._requests.clear()

    def order(self, cluster: str) -> Sequence[IPAddress]:
        """Return the cluster's gateways in the order in which they are searched (R1)."""
        return self._order[cluster]

    def request(self, cluster: str, now: float) -> list[Action]:
        """
        Ask for a session with some gateway of `cluster` (R2: one request at a time; R3: their order).

        Within the back-off after a rejection it is rejected at once.
        """
        if cluster in self._requests:
            return []
        if now < self.barred_until(cluster):
            return self._requester.rejected(cluster, now)
        first, *others = sorted(self._order[cluster], key=lambda gateway: self.failed_at.get(gateway, 0.0))
        self._requests[cluster] = _Request(first, others)
        return self._requester.authenticate(first, now)

    def barred_until(self, cluster: str) -> float:
        """Return the end of the cluster's back-off (R3)."""
        return self._backoff.get(cluster, (0.0, 0.0))[0]

    def end_backoff(self) -> None:
        """Let the next request of every cluster through: the network has changed (R3)."""
        self._backoff.clear()

    def confirmed(self, gateway: IPAddress) -> None:
        """Hear that `gateway` gave keys: requests that wanted it are answered, and no back-off goes on."""
        self.established += 1
        self.failed_at.pop(gateway, None)
        for name, order in self._order.items():
            if gateway in order:
                self._backoff.pop(name, None)
            if name in self._requests and self._requests[name].gateway == gateway:
                del self._requests[name]

    def put_last(self, gateway: IPAddress, now: float) -> None:
        """Try `gateway` after all others from now on: it has left or failed (R3)."""
        self.failed_at[gateway] = now

    def given_up(self, gateway: IPAddress, reason: str, now: float) -> list[Action]:
        """
        Hear that `gateway` gave no key: try the next one for each request that wanted it (R3).

        What is given up meanwhile, for want of a key in the policy, waits its turn: clusters may be large.
        """
        self._given_up.append((gateway, reason))
        if len(self._given_up) > 1:
            return []
        actions: list[Action] = []
        while self._given_up:
            actions += self._go_on(*self._given_up[0], now)
            self._given_up.popleft()
        return actions

    def _go_on(self, gateway: IPAddress, reason: str, now: float) -> list[Action]:
        self.failures += 1
        self.failed_at[gateway] = now
        fields: Fields = {"gateway": str(gateway), "reason": reason}
        actions: list[Action] = [Event("no key from gateway {gateway}: {reason}", fields, warning=True)]
        for name, request in list(self._requests.items()):
            if request.gateway != gateway:
                continue
            if request.candidates:
                request.gateway = request.candidates.pop(0)
                actions += self._requester.authenticate(request.gateway, now)
            else:
                actions += self._reject(name, now)
        return actions

    def _reject(self, cluster: str, now: float) -> list[Action]:
        """
        End a request that no gateway answered; the next may come after 1 s, doubling to 8 s, jittered (R3).
        """
        del self._requests[cluster]
        _, last = self._backoff.get(cluster, (0.0, 0.0))
        delay = min(2 * last, BACKOFF_LAST) or BACKOFF_FIRST
        jittered = min(delay * (0.75 + 0.5 * self._random.random()), BACKOFF_LAST)
        self._backoff[cluster] = (now + jittered, delay)
        event = Event("no gateway of {cluster} gives a key", {"cluster": cluster}, warning=True)
        return [event, *self._requester.rejected(cluster, now)]


def _keep_place(gateway: IPAddress, order: list[IPAddress], before: list[IPAddress]) -> None:
    """Let the same gateways stand before `gateway` as did `before`, if they are the same in all."""
    if set(order) == set(before):
        earlier = before[: before.index(gateway)]
        order.sort(key=lambda other: 0 if other in earlier else 1 if other == gateway else 2)
