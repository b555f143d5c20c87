"""The network in memory of `tests.unit.simulation`, whose nodes know each other by certificates alone."""

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

from rvpn.client.node import Client
from rvpn.constants import Mechanism, Role
from rvpn.gateway.node import Gateway
from rvpn.interfaces import IPAddress, PeerIdentity
from rvpn.keyexchange.credentials import Authenticator, Credentials
from rvpn.session.lost_keys import LostKeys
from tests.certificates import Authority, Issued, authenticator
from tests.unit.simulation import Host, Network

CA = Authority()
RANGE = ip_network("10.99.0.0/24")
NAMES = "alice", "bob", "carol"


def who(name: str) -> PeerIdentity:
    """Return the identity of a client at its gateways."""
    return PeerIdentity(Mechanism.TLS, f"{name} (Test CA)")


def gateway_side(own: Issued, *, revoked: Sequence[Issued] = (), authority: Authority = CA) -> Authenticator:
    """Return what a gateway has that accepts the authority's clients."""
    return authenticator(Role.GATEWAY, own, authority.accepted(RANGE, revoked_ones=revoked))


def client_side(own: Issued, *, revoked: Sequence[Issued] = ()) -> Authenticator:
    """Return what a client has."""
    return authenticator(Role.CLIENT, own, CA.accepted(revoked_ones=revoked))


class CertifiedNetwork(Network):
    """
    Clients alice and so on; their `certificates` and those of the gateways, in their order.

    `client_ends` and `gateway_ends` hold what the nodes have of them.
    """

    def __init__(
        self,
        gateways: int = 1,
        clients: int = 1,
        client_ends: Sequence[Authenticator] = (),
        gateway_ends: Sequence[Authenticator] = (),
        **more: Any,
    ) -> None:
        inner = [f"10.99.0.{number + 1}" for number in range(clients)]
        self.certificates = [CA.client(name, a) for name, a in zip(NAMES, inner, strict=False)]
        self.gateway_certificates = [
            CA.gateway(f"gw{n + 1}", f"198.51.100.{21 + n}") for n in range(gateways)
        ]
        self.client_ends = [*(client_ends or map(client_side, self.certificates))]
        self.gateway_ends = [*(gateway_ends or map(gateway_side, self.gateway_certificates))]
        super().__init__(gateways, clients=clients, **more)

    def _client(self, key: bytes, inner: IPAddress) -> Client:
        self.client_policy = replace(self.client_policy, mechanism=Mechanism.TLS, peers={})
        policy = replace(self.client_policy, inner_addresses=(inner,))
        credentials = Credentials(certificates=self.client_ends[self.client_keys.index(key)])
        return Client(policy, credentials, (inner,), self.random, self.clock, self.now)

    def _gateway(self, key: bytes) -> Gateway:
        self.gateway_policy = replace(self.gateway_policy, clients=())
        self.starts[key] = self.starts.get(key, 0) + 1
        return Gateway(
            self.gateway_policy,
            Credentials(certificates=self.gateway_ends[self.keys.index(key)]),
            self.random,
            self.clock,
            self.now,
            lost_keys=LostKeys(key, self.starts[key]),
        )

    def certify(self, host: Host[Any], end: Authenticator) -> None:
        """Let a node read its certificates again."""
        self.act(host, host.node.certify(Credentials(certificates=end), self.now))
