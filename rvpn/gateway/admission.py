"""
What a gateway grants to whom, in exchanges that either side begins, and why not (DESIGN 4).

    a client's offer -> `answer`: it may have its inner addresses, if they are its own and nobody else's
        -> another was faster with them: `taken`
    this gateway calls -> `offer`

Each answer and offer tells how fit this gateway is (X4), and what would prove that it lost the keys (X3).
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from rvpn.constants import REKEY_JITTER, SHORTEST_DEFER
from rvpn.gateway.clients import Clients
from rvpn.interfaces import IPAddress, Parameters, PeerIdentity
from rvpn.keyexchange.terms import Terms
from rvpn.policy.model import Client
from rvpn.session.lost_keys import LostKeys
from rvpn.session.session_control import Status
from rvpn.session.sessions import SessionCache


class Admitter(Protocol):
    """What admission needs to know of its gateway; `draining` is what an administrator says."""

    cache: SessionCache
    clients: Clients
    draining: bool
    fitness: Status
    lost_keys: LostKeys
    terms: Terms


class Admission:
    """See the module."""

    def __init__(self, gateway: Admitter) -> None:
        self._gateway = gateway

    def offer(self, client: Client) -> Parameters:
        """Return what this gateway says to a client that it calls."""
        gateway = self._gateway
        return self._about_us(gateway.terms.offer(gateway.cache.new_spi(), client.inner_addresses))

    def answer(self, client: Client, offer: Parameters, now: float) -> Parameters:
        """Return what this gateway says to a client that authenticated and made this offer."""
        gateway = self._gateway
        return self._about_us(
            gateway.terms.answer(gateway.cache.new_spi(), offer, self._refusal(client, offer, now))
        )

    def taken(self, identity: PeerIdentity, inner_addresses: Iterable[IPAddress]) -> str:
        """Say which address is in use by, or granted to, another client, if one is (DESIGN 4)."""
        clients = self._gateway.clients
        for address in inner_addresses:
            session = self._gateway.cache.by_inner.get(address.packed)
            if session is not None and session.peer != identity:
                return f"another client uses {address} now"
            if not clients.grants(identity, (address,)):
                named = clients.at(address.packed)
                return f"{address} is that of Client{named.number} in [CLIENTS]" if named else "not granted"
        return ""

    def _refusal(self, client: Client, offer: Parameters, now: float) -> str:
        """Say why a client gets no session; empty if it gets one."""
        if not self._gateway.terms.in_common(offer):
            return "no transform in common"
        if not offer.inner_addresses or not set(offer.inner_addresses) <= set(client.inner_addresses):
            return "it is granted other inner addresses"
        if taken := self.taken(client.identity, offer.inner_addresses):
            return taken
        if offer.literal_heartbeats != self._gateway.terms.policy.literal_heartbeats:
            return "HeartbeatAuthentication differs"
        return "it is draining" if self._gateway.draining and not self._renews(client, now) else ""

    def _renews(self, client: Client, now: float) -> bool:
        """
        Tell whether a client wants keys because those it has are old. One that has lost fresh ones is new
        (X4).
        """
        session = self._gateway.cache.get(client.identity)
        pair = session.sending if session is not None else None
        return pair is not None and (pair.worn or now >= pair.made_at + REKEY_JITTER * pair.lifetime)

    def _about_us(self, parameters: Parameters) -> Parameters:
        """Add what this gateway tells of itself in every exchange."""
        return replace(
            parameters,
            status=self._gateway.fitness,
            shortest_defer=SHORTEST_DEFER,
            lost_key_token=self._gateway.lost_keys.token(parameters.spi),
        )
