"""
Who may come to a gateway: the clients of its policy, and whoever has a certificate of one of its authorities.

    initiation -> `of` -> Client: its inner addresses from [CLIENTS], or from its certificate
    confirmed session -> `came` -> found again by inner address, to be called (R12)

A client with a certificate is unknown before it came, and remembered, with the addresses that it has by now,
until a reload finds it refused.
"""

from collections.abc import Callable, Iterable, Iterator

from rvpn.constants import Mechanism
from rvpn.errors import DropReason, RemoteError
from rvpn.interfaces import Endpoint, Initiation, IPAddress, PeerIdentity
from rvpn.policy.model import Client, Policy
from rvpn.session.sessions import Session


class Clients:
    """See the module."""

    def __init__(self) -> None:
        self._named: dict[PeerIdentity, Client] = {}
        self._by_address: dict[bytes, Client] = {}
        self._last: dict[PeerIdentity, Session] = {}
        self._certified: dict[bytes, Client] = {}

    def __iter__(self) -> Iterator[Client]:
        """Iterate over the clients of the policy, and those that came with certificates."""
        return iter({c.identity: c for c in (*self._named.values(), *self._certified.values())}.values())

    def read(self, policy: Policy) -> None:
        """Take the clients of a policy just read."""
        self._named = {client.identity: client for client in policy.clients}
        self._by_address = {a.packed: client for client in policy.clients for a in client.inner_addresses}

    def of(self, initiation: Initiation) -> Client:
        """Return the client that authenticated so. Raises `RemoteError` if there is none."""
        identity = initiation.identity
        if initiation.inner_addresses is not None:
            return Client(0, identity, initiation.inner_addresses)
        client = self._named.get(identity)
        if client is None:
            raise RemoteError(DropReason.AUTHENTICATION_FAILED, f"no client has the key {identity.name}")
        return client

    def grants(self, identity: PeerIdentity, inner_addresses: Iterable[IPAddress]) -> bool:
        """
        Tell whether a client may have these addresses by the policy.

        What a client has by its certificate is for its authority to say, but for what the policy gives to
        another one.
        """
        if identity.mechanism is Mechanism.TLS:
            return not any(address.packed in self._by_address for address in inner_addresses)
        client = self._named.get(identity)
        return client is not None and set(inner_addresses) <= set(client.inner_addresses)

    # --- where they are (R12) -------------------------------------------------------------------------------

    def came(self, session: Session) -> None:
        """Remember a client with which there is a session now."""
        self._last[session.peer] = session
        if session.peer.mechanism is Mechanism.TLS:
            client = Client(0, session.peer, session.inner_addresses)
            others = {a: c for a, c in self._certified.items() if c.identity != session.peer}
            self._certified = others | dict.fromkeys(session.packed_addresses, client)

    def at(self, address: bytes) -> Client | None:
        """Return the client whose inner address (packed) this is."""
        return self._by_address.get(address) or self._certified.get(address)

    def endpoint(self, client: Client) -> Endpoint | None:
        """Return where a client can be called: where the policy says, else where it was last."""
        last = self._last.get(client.identity)
        return client.endpoint or (last.path.remote if last is not None else None)

    def forget(self, objection: Callable[[Session], str]) -> None:
        """Forget who is no longer in the policy, and who had a certificate to which there is an objection."""
        self._last = {
            peer: session
            for peer, session in self._last.items()
            if (peer in self._named if peer.mechanism is Mechanism.NOISE else not objection(session))
        }
        self._certified = {a: c for a, c in self._certified.items() if c.identity in self._last}

    def has(self, client: Client) -> bool:
        """Tell whether a client that was known before still is, with the same addresses."""
        known = client.identity.mechanism is Mechanism.NOISE or client.identity in self._last
        return known and self.grants(client.identity, client.inner_addresses)
