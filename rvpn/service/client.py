"""The client at work: its inner addresses on the TUN device, the tunnels' networks routed there."""

import time
from collections.abc import Iterator

from rvpn.client import Client
from rvpn.constants import LINK_MTU, MIN_TUNNEL_MTU, Role
from rvpn.errors import LocalError
from rvpn.esp.codec import inner_mtu
from rvpn.interfaces import IPAddress
from rvpn.net.host import OUTER_MARK
from rvpn.net.netlink import OuterPath
from rvpn.policy import Policy, TunnelIndex
from rvpn.service.configuration import Configuration
from rvpn.service.tunnel import TunnelService


class ClientService(TunnelService[Client]):
    """See the module."""

    role = Role.CLIENT
    _inner_addresses: tuple[IPAddress, ...] = ()

    def _prepare_host(self, policy: Policy) -> int:
        gateways = list(_gateways(policy))
        paths = dict(self._paths(gateways))
        self._link_mtu = min((path.mtu for path in paths.values()), default=LINK_MTU)
        fitting = (inner_mtu(path.mtu, gateway.version) for gateway, path in paths.items())
        mtu = max(MIN_TUNNEL_MTU, min(fitting, default=inner_mtu(LINK_MTU, 6)))
        self._use(policy.inner_addresses or _own(paths))
        self._host.prepare_tun(self._tun.name, policy.inner_addresses or (), mtu)
        sources = {address.version: address for address in reversed(self._inner_addresses)}
        networks = TunnelIndex(policy.tunnels).networks()
        self._host.set_routes(networks, sources.values(), bypass=gateways)
        return mtu

    def _use(self, addresses: tuple[IPAddress, ...]) -> None:
        """Fix the inner addresses. Raises `LocalError` if they are others than at the start (R18: `own`)."""
        if set(addresses) != set(self._inner_addresses or addresses):
            after = ", ".join(map(str, addresses))
            raise LocalError(
                f"InnerAddress is own, and that is now {after}, which takes a restart; nothing was changed"
            )
        self._inner_addresses = addresses

    def _paths(self, gateways: list[IPAddress]) -> Iterator[tuple[IPAddress, OuterPath]]:
        for gateway in gateways:
            path = self._netlink.path_to(gateway, OUTER_MARK)
            if path is not None:
                yield gateway, path

    def _make_node(self, configuration: Configuration) -> Client:
        return Client(
            configuration.policy,
            configuration.credentials,
            self._inner_addresses,
            self._random,
            time.time,
            self._link_mtu,
        )


def _gateways(policy: Policy) -> set[IPAddress]:
    return {
        gateway
        for tunnel in policy.tunnels
        if tunnel.cluster is not None
        for gateway in tunnel.cluster.members
    }


def _own(paths: dict[IPAddress, OuterPath]) -> tuple[IPAddress, ...]:
    """Return the addresses from which this host reaches its gateways, one per IP version (R18)."""
    own = {path.source.version: path.source for path in paths.values()}
    if not own:
        raise LocalError(
            "there is no route to any gateway, and so no address of our own to use inside the tunnel: "
            "bring the network up first, or set InnerAddress in [DEVICE]"
        )
    return tuple(own.values())
