"""
The gateway at work: its clients' inner addresses routed to the TUN device, and forwarding to and from the
LAN.
"""

from ipaddress import ip_network

from rvpn.constants import MIN_TUNNEL_MTU, Role
from rvpn.errors import LocalError
from rvpn.esp.codec import inner_mtu
from rvpn.gateway import Gateway
from rvpn.interfaces import IPAddress
from rvpn.policy import Policy
from rvpn.service.configuration import Configuration
from rvpn.service.tunnel import TunnelService


class GatewayService(TunnelService[Gateway]):
    """See the module."""

    role = Role.GATEWAY

    def _prepare_host(self, policy: Policy) -> int:
        inside = [name for name in (self._tun.name, policy.lan_interface) if name is not None]
        self._link_mtu = self._netlink.smallest_mtu(without=inside)
        # A session over IPv6 holds less; its packets that are too big draw an ICMP error of their own.
        mtu = max(MIN_TUNNEL_MTU, inner_mtu(self._link_mtu, 4))
        addresses = {address for client in policy.clients for address in client.inner_addresses}
        self._refuse_own(addresses)
        self._host.prepare_tun(self._tun.name, (), mtu)
        self._host.set_routes(map(ip_network, addresses), self._lan_addresses(policy).values())
        self._host.enable_forwarding(inside, {network.version for network in policy.lan_networks})
        return mtu

    def _refuse_own(self, addresses: set[IPAddress]) -> None:
        """Refuse a policy that grants an address of this host to a client (DESIGN 4)."""
        for address in sorted(addresses & self._netlink.all_addresses(), key=str):
            raise LocalError(f"the policy grants {address} to a client, but it is an address of this host")

    def _lan_addresses(self, policy: Policy) -> dict[int, IPAddress]:
        """
        Return this gateway's own addresses on the LAN, at most one per IP version: clients hear its ICMP
        errors.
        """
        if policy.lan_interface is None:
            return {}
        return {
            address.version: address
            for address in self._netlink.addresses(self._netlink.index(policy.lan_interface))
            if any(address in network for network in policy.lan_networks)
        }

    def _make_node(self, configuration: Configuration) -> Gateway:
        return Gateway(
            configuration.policy, configuration.credentials, self._random, self.now(), self._link_mtu
        )
