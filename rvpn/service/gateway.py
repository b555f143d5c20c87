"""
The gateway at work: its clients' inner addresses routed to the TUN device, and forwarding to and from the
LAN.
"""

import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from ipaddress import ip_network
from typing import Any

from rvpn.constants import LanPresence, Role
from rvpn.errors import LocalError
from rvpn.files.state import StateDirectory
from rvpn.gateway.lanwatch import LanWatch
from rvpn.gateway.node import Gateway
from rvpn.interfaces import Action, Announce, IPAddress, IPNetwork, Probe
from rvpn.net.clock import SleepWatch, StallWatch
from rvpn.net.host import OUTER_MARK
from rvpn.net.neighbours import NeighbourPort
from rvpn.net.probe import Prober
from rvpn.policy import Policy
from rvpn.service.configuration import Configuration
from rvpn.service.control import Command
from rvpn.service.tunnel import TunnelService
from rvpn.session.lost_keys import LostKeys

#: The file in the state directory that holds the secret of lost-key tokens and the number of the last start
#: (X3).
_STARTS = "starts"


class GatewayService(TunnelService[Gateway]):
    """See the module."""

    role = Role.GATEWAY

    def _prepare_host(self, policy: Policy) -> None:
        addresses = {address for client in policy.clients for address in client.inner_addresses}
        granted = [network for authority in policy.authorities for network in authority.networks]
        self._refuse_own(addresses, granted)
        self._host.prepare_tun(self._tun.name, (), self.mtu)
        self._host.set_routes([*map(ip_network, addresses), *granted], self._lan_addresses(policy).values())
        self._forward(policy)

    def _outside(self, policy: Policy) -> list[tuple[int, int]]:
        # A session over IPv6 holds less; its packets that are too big draw an ICMP error of their own.
        return [(mtu, 4) for mtu in self._netlink.mtus(without=self._inside(policy))]

    def _forward(self, policy: Policy) -> None:
        """Switch forwarding on, where it is not."""
        versions = {network.version for network in policy.lan_networks}
        self._host.enable_forwarding(self._inside(policy), versions)

    def _inside(self, policy: Policy) -> list[str]:
        """Return the interfaces between which packets are forwarded."""
        return [name for name in (self._tun.name, policy.lan_interface) if name is not None]

    def _refuse_own(self, addresses: set[IPAddress], networks: list[IPNetwork]) -> None:
        """Refuse a policy that grants an address of this host to a client (DESIGN 4)."""
        own = self._netlink.all_addresses()
        taken = {address for address in own if any(address in network for network in networks)}
        for address in sorted(addresses & own | taken, key=str):
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

    def _make_node(self, configuration: Configuration, state: StateDirectory) -> Gateway:
        self._state = state
        return Gateway(
            configuration.policy,
            configuration.credentials,
            self._random,
            time.time,
            self.now(),
            lost_keys=self._next_start(),
        )

    def _next_start(self) -> LostKeys:
        """Number this start, persistently, so that the next one can prove that this one is over (X3)."""
        kept = self._state.read(_STARTS) or b""
        secret, start = kept[:32], int.from_bytes(kept[32:]) + 1
        if len(secret) < 32:
            secret, start = self._random.randbytes(32), 1
        self._state.write(_STARTS, secret + start.to_bytes(8))
        return LostKeys(secret, start)

    # --- the LAN side ---------------------------------------------------------------------------------------

    def _watch_host(self, resources: ExitStack) -> None:
        policy = self._configuration.policy
        self._lan = LanWatch(self.node.agenda, self.node.lan_changed)
        self._prober = Prober(policy.lan_interface, self, self._reactor, OUTER_MARK)
        resources.callback(self._prober.close)
        self._neighbours: NeighbourPort | None = None
        if policy.lan_interface is not None:
            self._lan_index = self._netlink.index(policy.lan_interface)
        if policy.presence is LanPresence.PROXY_ARP:
            if policy.lan_interface is None:
                raise LocalError(f"{self._file}: Presence = proxy-arp needs the Interface of [LAN]")
            self._neighbours = NeighbourPort(policy.lan_interface, self, self._reactor)
            resources.callback(self._leave_lan)
            for watch in SleepWatch, StallWatch:
                resources.callback(watch(self._stood_still, self._reactor).close)

    def startService(self) -> None:
        """Begin to carry packets and to watch the LAN."""
        super().startService()
        if self._neighbours is not None:
            self._neighbours.startReading()
        self._probe_as_told()

    def _take_over(self, after: Configuration) -> None:
        super()._take_over(after)
        self._probe_as_told()

    def _probe_as_told(self) -> None:
        policy = self._configuration.policy
        self.perform(self._lan.probe, policy.probe, policy.probe_interval)

    def linkChanged(self, name: str, up: bool) -> None:
        """Take the LAN interface for what it is (R14)."""
        if name == self._configuration.policy.lan_interface:
            usable = up and self._is_prepared(name)
            self.perform(self._lan.link, usable)

    def _leave_lan(self) -> None:
        if self._neighbours is not None:
            self._neighbours.close()

    def _is_prepared(self, interface: str) -> bool:
        """
        See to it that a LAN interface that is up is as the start left it; tell whether that is so.

        If it was removed and made anew, which its index tells, nothing is set on it, the sockets of the one
        before hear nothing more, and nobody knows what happened on the LAN meanwhile.
        """
        try:
            index = self._netlink.index(interface)
            if index == self._lan_index:
                return True
            self._forward(self._configuration.policy)
            if self._neighbours is not None:
                self._leave_lan()
                self._neighbours = NeighbourPort(interface, self, self._reactor)
                self._neighbours.startReading()
                self.perform(self.node.presence.clock_jumped)
        except LocalError as error:
            self._log.error(
                "{interface} was made anew and is of no use: {error}", interface=interface, error=str(error)
            )
            return False
        self._lan_index = index
        self._log.warn("{interface} was made anew: forwarding is on again", interface=interface)
        return True

    def probeAnswered(self, target: IPAddress, sequence: int) -> None:
        """See `rvpn.net.probe.ProbeReceiver`."""
        self.perform(self._lan.answered, target, sequence)

    def owns(self, address: bytes) -> bool:
        """See `rvpn.net.neighbours.NeighbourReceiver`."""
        return self.node.presence.owns(address)

    def foreignAnnouncement(self, address: IPAddress) -> None:
        """See `rvpn.net.neighbours.NeighbourReceiver`."""
        self.perform(self.node.presence.contradicted, address)

    def _stood_still(self, seconds: float) -> None:
        """Doubt everything that was owned: another gateway may have been claimed meanwhile (DESIGN 8)."""
        self.perform(self.node.presence.clock_jumped)

    def _carry_out(self, action: Action) -> Iterable[Action]:
        if isinstance(action, Announce) and self._neighbours is not None:
            self._neighbours.announce(action.address)
        elif isinstance(action, Probe):
            self._prober.send(action.target, action.sequence)
        return super()._carry_out(action)

    # --- commands -------------------------------------------------------------------------------------------

    @property
    def _commands(self) -> dict[str, Command]:
        commands = {"drain": self.drain, "undrain": self.undrain, "forget-keys": self.forget_keys}
        return {**super()._commands, **commands}

    def drain(self) -> Mapping[str, Any]:
        """Ask the clients to move to other gateways, and take no new ones (X4)."""
        self.perform(self.node.drain, True)
        return {"role": self.role.value, "sessions": len(self.node.cache)}

    def undrain(self) -> Mapping[str, Any]:
        """Be a gateway like any other again."""
        self.perform(self.node.drain, False)
        return {"role": self.role.value, "sessions": len(self.node.cache)}

    def forget_keys(self) -> Mapping[str, Any]:
        """Lose all keys at once, as a restart does (X3)."""
        start = self._next_start()
        self.perform(self.node.forget_keys, start)
        return {"role": self.role.value, "sessions": len(self.node.cache)}
