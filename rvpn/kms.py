"""
The key management service (the patent's 8): it picks the gateway, runs the key exchange and answers key
requests.

    request(cluster) -> the cluster's order (R1), failed gateways last (R3) -> one exchange with one gateway
        -> keys: granted() -> the first packet under them opens: confirmed()
        -> no keys, a refusal, no confirmation within ExchangeTime: the next gateway
        -> no gateway left: rejected(), and a back-off before the next request

A gateway has at most one authentication at a time, shared by all clusters that want it and by rekeying (R4).
Time comes in by the agenda and as `now`; what is to be sent, and what the requester makes of the outcome,
goes out as actions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rvpn.agenda import Agenda, Appointment
from rvpn.constants import BACKOFF_FIRST, BACKOFF_LAST, RETRANSMIT_CONSTANT, RETRANSMIT_INTERVAL
from rvpn.errors import DropReason, LocalError, RemoteError
from rvpn.interfaces import Action, Endpoint, Event, IPAddress, Path, RandomSource, Send
from rvpn.keyexchange.initiator import InitiatorExchange
from rvpn.keyexchange.tokens import Message
from rvpn.policy.model import Cluster


class Requester(Protocol):
    """Who asks for keys: the client's IP filter. Each answer returns the actions that it draws."""

    def authenticate(self, gateway: IPAddress, now: float) -> InitiatorExchange:
        """Begin an exchange with `gateway`. Raises `LocalError` if the policy does not let us."""

    def granted(
        self, gateway: IPAddress, exchange: InitiatorExchange, path: Path, now: float
    ) -> list[Action]:
        """
        Cache the keys of an established exchange. Raises `RemoteError` if what the gateway says is unusable.
        """

    def confirm(self, gateway: IPAddress) -> list[Action]:
        """Send a packet under the new keys, so that the gateway sees that we have them (DESIGN 4)."""

    def failed(self, gateway: IPAddress, now: float) -> list[Action]:
        """Forget keys of `gateway` that were granted but never confirmed."""

    def rejected(self, cluster: str, now: float) -> list[Action]:
        """No gateway of `cluster` gave us a key (R3)."""


@dataclass(slots=True)
class _Authentication:
    """One exchange with one gateway, up to the confirmation of its keys."""

    gateway: IPAddress
    exchange: InitiatorExchange
    expires_at: float
    path: Path
    timer: Appointment | None = None
    granted: bool = False
    confirmations: int = 0


@dataclass(slots=True)
class _Request:
    """A key request of a cluster: the gateway being tried, and those to try after it."""

    gateway: IPAddress
    candidates: list[IPAddress] = field(default_factory=list)


class KeyManagementService:
    """See the module."""

    def __init__(
        self, requester: Requester, agenda: Agenda, random: RandomSource, *, port: int, exchange_time: float
    ) -> None:
        """`port` is the gateways'; `exchange_time` the seconds that each gateway has."""
        self._requester = requester
        self._agenda = agenda
        self._random = random
        self._port = port
        self._exchange_time = exchange_time
        self._order: dict[str, list[IPAddress]] = {}
        self._running: dict[IPAddress, _Authentication] = {}
        self._requests: dict[str, _Request] = {}
        self._failed_at: dict[IPAddress, float] = {}
        self._backoff: dict[str, tuple[float, float]] = {}
        self.established = self.failures = 0

    @property
    def running(self) -> set[IPAddress]:
        """The gateways with which authentications are under way."""
        return set(self._running)

    def read(self, clusters: Iterable[Cluster], *, randomize: bool) -> None:
        """
        Take the clusters of a policy just read, each shuffled once unless `RandomizeClusters = no` (R1).
        """
        self._order = {cluster.name: list(cluster.members) for cluster in clusters}
        if randomize:
            for order in self._order.values():
                self._random.shuffle(order)
        for name in self._requests.keys() - self._order.keys():
            del self._requests[name]
        for name, request in self._requests.items():
            request.candidates = [gateway for gateway in self._order[name] if gateway != request.gateway]

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
        if now < self._backoff.get(cluster, (0.0, 0.0))[0]:
            return self._requester.rejected(cluster, now)
        candidates = sorted(self._order[cluster], key=lambda gateway: self._failed_at.get(gateway, 0.0))
        self._requests[cluster] = _Request(candidates[0], candidates[1:])
        return self._begin(candidates[0], now)

    def renew(self, gateway: IPAddress, now: float) -> list[Action]:
        """Make new keys with a gateway that we have a session with (rekey, make-before-break)."""
        return self._begin(gateway, now)

    def receive(self, message: Message, path: Path, now: float) -> list[Action]:
        """
        Take a key exchange message. Raises `RemoteError` unless it belongs to an exchange with its sender
        (R3).
        """
        running = self._running.get(path.remote.address)
        if running is None or message.exchange_id != running.exchange.exchange_id:
            raise RemoteError(DropReason.UNKNOWN_EXCHANGE)
        if path.remote.port != self._port:
            raise RemoteError(DropReason.WRONG_ORIGIN)
        actions: list[Action] = self._sends(running, running.exchange.receive(message, now))
        if running.exchange.context is not None and not running.granted:
            actions += self._grant(running, now)
        if self._running.get(running.gateway) is running:
            self._rearm(running)
        return actions

    def confirmed(self, gateway: IPAddress, now: float) -> None:
        """
        Hear that a packet opened under the new keys of `gateway`: every request that wanted it is answered.
        """
        running = self._running.pop(gateway, None)
        if running is None:
            return
        if running.timer is not None:
            running.timer.cancel()
        self.established += 1
        self._failed_at.pop(gateway, None)
        for name, request in list(self._requests.items()):
            if request.gateway == gateway:
                del self._requests[name]
                self._backoff.pop(name, None)

    def unreachable(self, gateway: IPAddress, now: float) -> list[Action]:
        """Hear that no packet can be sent to `gateway` (ENETUNREACH): the next gateway now (R3)."""
        running = self._running.get(gateway)
        return [] if running is None else self._fail(running, "the network is unreachable", now)

    def put_last(self, gateway: IPAddress, now: float) -> None:
        """Try `gateway` after all others from now on: it has left or failed (R3)."""
        self._failed_at[gateway] = now

    def leave(self, gateway: IPAddress, now: float) -> list[Action]:
        """End what is under way with a gateway that the policy no longer names: the next one now."""
        running = self._running.get(gateway)
        actions = [] if running is None else self._fail(running, "the policy no longer names it", now)
        self._failed_at.pop(gateway, None)
        return actions

    # --- one authentication -----------------------------------------------------------------------

    def _begin(self, gateway: IPAddress, now: float) -> list[Action]:
        if gateway in self._running:
            return []
        try:
            exchange = self._requester.authenticate(gateway, now)
            datagrams = exchange.start(now)
        except LocalError as error:
            return self._next_gateway(gateway, str(error), now)
        path = Path(Endpoint(gateway, self._port))
        running = _Authentication(gateway, exchange, now + self._exchange_time, path)
        self._running[gateway] = running
        actions = self._sends(running, datagrams)
        self._rearm(running)
        return actions

    def _grant(self, running: _Authentication, now: float) -> list[Action]:
        context = running.exchange.context
        assert context is not None
        if context.peer_parameters.refusal:
            return self._fail(running, f"it refuses: {context.peer_parameters.refusal}", now)
        running.granted = True
        try:
            actions = self._requester.granted(running.gateway, running.exchange, running.path, now)
        except RemoteError as error:
            return self._fail(running, str(error), now)
        return actions + self._confirm(running, now)

    def _confirm(self, running: _Authentication, now: float) -> list[Action]:
        """Send a packet under the new keys, and again as tokens are sent again, until one comes back."""
        doublings = max(0, running.confirmations - RETRANSMIT_CONSTANT)
        running.confirmations += 1
        self._set_timer(running, now + RETRANSMIT_INTERVAL * 2**doublings)
        return self._requester.confirm(running.gateway)

    def _due(self, running: _Authentication, now: float) -> list[Action]:
        running.timer = None
        if running.granted:
            if now >= running.expires_at:
                return self._fail(running, "its keys were never confirmed", now)
            return self._confirm(running, now)
        actions = self._sends(running, running.exchange.advance(now))
        if running.exchange.failed:
            return actions + self._fail(running, running.exchange.failed, now)
        self._rearm(running)
        return actions

    def _rearm(self, running: _Authentication) -> None:
        if not running.granted:
            self._set_timer(running, running.exchange.deadline())

    def _set_timer(self, running: _Authentication, when: float) -> None:
        if running.timer is not None:
            running.timer.cancel()
        running.timer = self._agenda.at(min(when, running.expires_at), lambda now: self._due(running, now))

    def _sends(self, running: _Authentication, datagrams: Iterable[bytes]) -> list[Action]:
        return [Send(datagram, running.path) for datagram in datagrams]

    def _fail(self, running: _Authentication, reason: str, now: float) -> list[Action]:
        del self._running[running.gateway]
        if running.timer is not None:
            running.timer.cancel()
        actions = self._requester.failed(running.gateway, now)
        return actions + self._next_gateway(running.gateway, reason, now)

    # --- the requests that wait for it ------------------------------------------------------------

    def _next_gateway(self, gateway: IPAddress, reason: str, now: float) -> list[Action]:
        """Note that `gateway` gave no key, and try the next one for each request that wanted it (R3)."""
        self.failures += 1
        self._failed_at[gateway] = now
        fields: dict[str, str | int | float | bool] = {"gateway": str(gateway), "reason": reason}
        actions: list[Action] = [Event("no key from gateway {gateway}: {reason}", fields, warning=True)]
        for name, request in list(self._requests.items()):
            if request.gateway != gateway:
                continue
            if request.candidates:
                request.gateway = request.candidates.pop(0)
                actions += self._begin(request.gateway, now)
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
        self._backoff[cluster] = (now + delay * (0.75 + 0.5 * self._random.random()), delay)
        event = Event("no gateway of {cluster} gives a key", {"cluster": cluster}, warning=True)
        return [event, *self._requester.rejected(cluster, now)]
