"""The client at work: its inner addresses on the TUN device, the tunnels' networks routed there."""

import time
from contextlib import ExitStack
from typing import NoReturn

from rvpn.client.node import Client
from rvpn.constants import Role
from rvpn.errors import LocalError
from rvpn.files.state import StateDirectory
from rvpn.interfaces import Event, IPAddress
from rvpn.net.clock import SleepWatch
from rvpn.net.host import OUTER_MARK
from rvpn.net.netlink import OuterPath
from rvpn.policy import Policy, TunnelIndex
from rvpn.policy.auto import resolve_auto
from rvpn.service.configuration import Configuration
from rvpn.service.control import Command
from rvpn.service.tunnel import TunnelService

#: The file in the state directory that holds the highest ownership generation used (DESIGN 6).
_GENERATION = "generation"


class ClientService(TunnelService[Client]):
    """See the module."""

    role = Role.CLIENT
    _server: IPAddress | None = None
    _inner_addresses: tuple[IPAddress, ...] = ()

    @property
    def _commands(self) -> dict[str, Command]:
        return {**super()._commands, "drain": for_gateways, "undrain": for_gateways}

    def _prepare_host(self, policy: Policy) -> None:
        self._server = self._access_server(policy)
        policy = self._resolved(policy)
        self._use(policy.inner_addresses or _own(self._paths(policy)))
        self._host.prepare_tun(self._tun.name, policy.inner_addresses or (), self.mtu)
        sources = {address.version: address for address in reversed(self._inner_addresses)}
        networks = TunnelIndex(policy.tunnels).networks()
        self._host.set_routes(networks, sources.values(), bypass=_gateways(policy))

    def _outside(self, policy: Policy) -> list[tuple[int, int]]:
        paths = self._paths(self._resolved(policy))
        return [(path.mtu, gateway.version) for gateway, path in paths.items()]

    def _use(self, addresses: tuple[IPAddress, ...]) -> None:
        """Fix the inner addresses. Raises `LocalError` if they are others than at the start (R18: `own`)."""
        if set(addresses) != set(self._inner_addresses or addresses):
            after = ", ".join(map(str, addresses))
            raise LocalError(
                f"InnerAddress is own, and that is now {after}, which takes a restart; nothing was changed"
            )
        self._inner_addresses = addresses

    def _paths(self, policy: Policy) -> dict[IPAddress, OuterPath]:
        """Return the ways to the gateways of a resolved policy, as far as there are any."""
        paths = {gateway: self._netlink.path_to(gateway, OUTER_MARK) for gateway in _gateways(policy)}
        return {gateway: path for gateway, path in paths.items() if path is not None}

    def _make_node(self, configuration: Configuration, state: StateDirectory) -> Client:
        self._state = state
        self._saved_generation = int.from_bytes(state.read(_GENERATION) or b"")
        return Client(
            self._resolved(configuration.policy),
            configuration.credentials,
            self._inner_addresses,
            self._random,
            time.time,
            self.now(),
            self._saved_generation,
        )

    def _watch_host(self, resources: ExitStack) -> None:
        sleep = SleepWatch(self._slept, self._reactor)
        resources.callback(sleep.close)
        resources.callback(self._save_generation)

    def _slept(self, _seconds: float) -> None:
        self.perform(self.node.host_changed)

    def addressChanged(self) -> None:
        """Ask the gateways in use at once: the way to them may have changed (X6)."""
        self.perform(self.node.host_changed)

    def linkChanged(self, name: str, up: bool) -> None:
        """Ask the gateways in use at once: the way to them may have changed (X6)."""
        self.perform(self.node.host_changed)

    def routeChanged(self) -> None:
        """Follow the outside link, or whatever AUTO stands for now (R15)."""
        server = self._access_server(self._configuration.policy)
        if server == self._server:
            super().routeChanged()
            return
        self._log.info("the access server is now {server}", server=str(server) if server else "none")
        try:
            self._take_over(self._configuration)
        except LocalError as error:
            self._log.error("the new access server cannot be used: {error}", error=str(error))

    def _access_server(self, policy: Policy) -> IPAddress | None:
        """Return the access server, if `policy` has AUTO (R15); between two networks it is the one before."""
        if all(tunnel.cluster for tunnel in policy.tunnels):
            return self._server
        return self._netlink.access_server(without=[self._tun.index]) or self._server

    def _resolved(self, policy: Policy) -> Policy:
        """Put what AUTO stands for into its entries (R15)."""
        return resolve_auto(policy, self._server)

    def _tell(self, event: Event) -> None:
        super()._tell(event)
        # Every change of gateway is told, and claims an address with a new generation.
        if self.node.session_control.generation != self._saved_generation:
            self._saved_generation = self.node.session_control.generation
            self._reactor.callLater(1.0, self._save_generation)

    def _save_generation(self) -> None:
        try:
            self._state.write(_GENERATION, self.node.session_control.generation.to_bytes(12))
        except LocalError as error:
            # The clock gives a newer one after a restart, unless it goes back.
            self._log.error("the ownership generation is not saved: {error}", error=str(error))


def for_gateways() -> NoReturn:
    """Refuse to be drained. Raises `LocalError`."""
    raise LocalError("this is a client; drain and undrain are for gateways, whose clients they move away")


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
