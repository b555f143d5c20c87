"""
A node at work: sockets, TUN device and timer around a calculation (`rvpn.interfaces.Node`).

    TUN device -> packetsReceived -> node.outbound -> UDP
    UDP -> TunnelProtocol, KeyExchangeProtocol -> node.inbound, node.key_exchange -> TUN device, UDP
    alarm -> node.advance; SIGHUP, `rvpn reload` -> the policy is read again; `rvpn status` -> node.status
    links and routes change -> the MTU of the outside link is looked up -> TUN device, node.paths

`open` takes everything from the host that the role needs and raises `LocalError` if something is missing,
before twistd leaves the terminal; `stopService` says good-bye to the peers and gives everything back.
"""

import atexit
import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from random import SystemRandom
from time import time
from typing import Any, ClassVar, Generic, TypeVar, TypeVarTuple

from twisted.application.service import Service
from twisted.internet.defer import inlineCallbacks
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from rvpn import __version__
from rvpn.client.node import Client
from rvpn.constants import BATCH_CAPACITY, LINK_MTU, MIN_TUNNEL_MTU, Role
from rvpn.errors import DropReason, LocalError
from rvpn.esp.codec import inner_mtu
from rvpn.files.state import StateDirectory
from rvpn.gateway.node import Gateway
from rvpn.interfaces import Action, DatagramBatch, Deliver, Endpoint, Event, PacketBatch, Send
from rvpn.net import alarm
from rvpn.net.host import OUTER_MARK, HostChanges
from rvpn.net.netlink import Netlink
from rvpn.net.offloads import IN_USE
from rvpn.net.tun import TunPort
from rvpn.net.udp import UDPPort, UDPPorts
from rvpn.net.udpsocket import open_socket
from rvpn.net.watch import NetworkWatch
from rvpn.policy import Policy
from rvpn.service import configuration
from rvpn.service.certificates import CertificateWatch, check_lists, in_words, named
from rvpn.service.configuration import Configuration
from rvpn.service.control import Command, ControlServer
from rvpn.service.protocols import TunnelProtocol
from rvpn.service.transforms import fastest_first

NodeT = TypeVar("NodeT", Client, Gateway)
Ts = TypeVarTuple("Ts")

#: Seconds that a stopping service waits for its peers to acknowledge.
FAREWELL = 0.5


class TunnelService(Service, ABC, Generic[NodeT]):
    """
    One role at work; `rvpn.service.client` and `rvpn.service.gateway` say what differs.

    `failed` tells, after the end, that it could not go on.
    """

    role: ClassVar[Role]
    node: NodeT
    #: Of the TUN device, in bytes; while no link leads outside, what fits into any Ethernet.
    mtu = inner_mtu(LINK_MTU, 6)
    failed = False
    _log = Logger()

    def __init__(self, file: str, reactor: Any) -> None:
        """`file` is the policy's; nothing happens before `open`."""
        self._file = Path(file).absolute()  # twistd may change its directory before a reload
        self._reactor = reactor
        self._random = SystemRandom()
        self._protocol = TunnelProtocol(self)
        self._resources = ExitStack()
        self.now: Callable[[], float] = alarm.now

    # --- what the roles decide ----------------------------------------------------------------------------

    @abstractmethod
    def _make_node(self, configuration: Configuration, state: StateDirectory) -> NodeT:
        """Return the node; the host is prepared."""

    @abstractmethod
    def _watch_host(self, resources: ExitStack) -> None:
        """Open what else the role listens to; the node is there."""

    def _resolved(self, policy: Policy) -> Policy:
        """Return the policy as the node is to have it."""
        return policy

    @property
    def _commands(self) -> dict[str, Command]:
        """The commands of the control socket."""
        return {"status": self.status, "reload": self.reload}

    @abstractmethod
    def _prepare_host(self, policy: Policy) -> None:
        """Give the TUN device its addresses and the host its routes; on a reload, what changed of them."""

    @abstractmethod
    def _outside(self, policy: Policy) -> list[tuple[int, int]]:
        """
        Return the links to the peers: the MTU of each in bytes, and the IP version of what it is to carry.
        """

    # --- start and stop -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Take what the role needs from the host. Raises `LocalError`, and then holds nothing."""
        with ExitStack() as resources:
            self._configuration = config = configuration.read(self._file, self.role)
            state = StateDirectory(config.state_directory)
            resources.callback(state.close)
            self._netlink = Netlink()
            resources.callback(self._netlink.close)
            policy = config.policy
            self._tun = TunPort(policy.device_name, self, self._reactor, policy.offload)
            resources.callback(self._tun.close)
            self._be_the_only_one()
            self._host = HostChanges(state, self.role, self._netlink)
            self._host.recover()
            resources.callback(self._host.undo)
            self._prepare_host(policy)
            self.node = self._make_node(config, state)
            self._follow_link(policy)
            self.node.terms.fastest_first = fastest_first()
            in_use = {name for name, state in self._tun.offloads.items() if state == IN_USE}
            self.node.offload(
                checksums="checksum" in in_use,
                tcp={"TSO4", "TSO6"} <= in_use,
                udp={"USO4", "USO6"} <= in_use,
            )
            self._alarm = alarm.Alarm(self._ring, self._reactor)
            resources.callback(self._alarm.close)
            self._network = NetworkWatch(self, self._reactor, self._netlink, without=[self._tun.index])
            resources.callback(self._network.close)
            self._watch_certificates(resources)
            self._watch_host(resources)
            # After all else: the kernel closes the files of a killed process from the last to the first, and
            # a TUN device or a packet socket takes it some 50 ms. Until the UDP port is closed, no ICMP error
            # tells the peers that nobody is there (X6).
            received = DatagramBatch(BATCH_CAPACITY)
            self._udp = UDPPorts(
                policy.listen,
                lambda address: UDPPort(
                    open_socket(Endpoint(address, policy.port), OUTER_MARK),
                    self._protocol,
                    self._reactor,
                    received,
                    policy.offload,
                ),
            )
            resources.callback(self._udp.close)
            self._protocol.makeConnection(self._udp)  # type: ignore[arg-type]  # see `TunnelProtocol`
            resources.callback(self._protocol.doStop)
            self._control = ControlServer(str(config.control_socket), self._commands)
            self._control.start(self._reactor)
            resources.callback(config.control_socket.unlink, missing_ok=True)
            self._resources = resources.pop_all()
        # Should twistd fail at something else, `stopService` is never called.
        atexit.register(self._resources.close)
        self._started_at = self.now()

    def _watch_certificates(self, resources: ExitStack) -> None:
        """Look after the certificates, if there are any: whether there are takes a restart to change."""
        if self._configuration.credentials.certificates is None:
            return
        watch = CertificateWatch(
            lambda: configuration.certificate_files(self._configuration.policy, self._file.parent),
            lambda: self._configuration.credentials.certificates,
            self._read_certificates,
            self._reactor,
        )
        resources.callback(watch.close)

    def _be_the_only_one(self) -> None:
        """
        Keep other processes of this role out of this network namespace, whose routing table they would share.

        No two interfaces have a name in common, only CAP_NET_ADMIN gives names, and the TUN device takes its
        own with it when the process ends. This one is too long for what anybody calls an interface.
        """
        if not self._netlink.add_name(self._tun.index, f"the-only-rvpn-{self.role.value}"):
            raise LocalError(
                f"another rvpn {self.role.value} runs on this host; there can be one of each role"
            )

    def startService(self) -> None:
        """Begin to carry packets."""
        super().startService()
        # What is there now stays: the collector need not look at it again and again between packets.
        gc.collect()
        gc.freeze()
        self._udp.startReading()
        self._tun.startReading()
        self._network.startReading()
        self._log.info(
            "rvpn {role} {version} is ready: device {device}, MTU {mtu}",
            role=self.role.value,
            version=__version__,
            device=self._tun.name,
            mtu=self.mtu,
        )

    @inlineCallbacks
    def stopService(self) -> Any:
        """Close the sessions, wait a moment for the peers to acknowledge, and give everything back."""
        super().stopService()
        try:
            yield self._control.stop()
            self._tun.stopReading()
            self.perform(self.node.close)
            deadline = self.now() + FAREWELL
            while not self.node.quiet and self.now() < deadline:
                yield deferLater(self._reactor, 0.02)
        except Exception:
            self._log.failure("the sessions could not be closed in order")
        finally:
            self._resources.close()
            atexit.unregister(self._resources.close)
        self._log.info("rvpn {role} has stopped", role=self.role.value)

    # --- packets ------------------------------------------------------------------------------------------

    def packetsReceived(self, packets: PacketBatch) -> None:
        """Take inner packets from the TUN device (`rvpn.net.tun.PacketReceiver`)."""
        self.perform(self._protocol.seal, packets)

    def hold(self) -> None:
        """See `rvpn.service.protocols.Shell`."""
        self._tun.stopReading()

    def release(self) -> None:
        """See `rvpn.service.protocols.Shell`."""
        if self.running:
            self._tun.startReading()

    def drop(self, reason: DropReason) -> None:
        """Count what somebody sent in vain."""
        self.node.drop(reason)

    def linkChanged(self, name: str, up: bool) -> None:
        """Hear of a link (`rvpn.net.watch.NetworkReceiver`)."""

    def addressChanged(self) -> None:
        """Hear of addresses (`rvpn.net.watch.NetworkReceiver`)."""

    def routeChanged(self) -> None:
        """See whether the outside link has another MTU now (`rvpn.net.watch.NetworkReceiver`)."""
        before = self.mtu
        try:
            self._follow_link(self._configuration.policy)
        except LocalError as error:
            self._log.error("the outside link is not followed: {error}", error=str(error))
        if self.mtu != before:
            self._log.info(
                "the outside link has another MTU: that of {device} is {mtu} now",
                device=self._tun.name,
                mtu=self.mtu,
            )

    def _follow_link(self, policy: Policy) -> None:
        """
        Let TUN device and sessions carry what fits into the links outside, if there are any (DESIGN 3).

        Raises `LocalError`; then all is as before.
        """
        links = self._outside(policy)
        if not links:
            return
        mtu = max(MIN_TUNNEL_MTU, min(inner_mtu(*link) for link in links))
        if mtu != self.mtu:
            self._netlink.bring_up(self._tun.index, mtu)
            self.mtu = mtu
        self.node.paths.link_changed(min(link_mtu for link_mtu, _ in links))

    def deviceLost(self, reason: Failure) -> None:
        """Stop: without its TUN device a node is of no use, and who started it can start it again."""
        self._log.critical("{reason}: this node stops", reason=reason.getErrorMessage())
        self.failed = True
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def perform(self, calculation: Callable[[*Ts, float], Iterable[Action]], *arguments: *Ts) -> None:
        """
        Run a calculation of the node at the present time, and carry out what it asks for.

        The alarm is set to the node's next deadline, even where something raises.
        """
        try:
            pending = list(calculation(*arguments, self.now()))
            for action in pending:  # which grows meanwhile
                pending += self._carry_out(action)
        finally:
            self._alarm.set(self.node.deadline())

    def _carry_out(self, action: Action) -> Iterable[Action]:
        """Do one thing, and return what the node makes of a failure."""
        if isinstance(action, Send):
            return self._protocol.send(action, self.now())
        if isinstance(action, Deliver):
            self.node.drop(DropReason.DELIVERY_FAILED, not self._tun.writePacket(action.packet))
        elif isinstance(action, Event):
            self._tell(action)
        return ()

    def deliver(self, packets: PacketBatch) -> None:
        """Give inner packets to the kernel."""
        if refused := self._tun.write(packets):
            self.node.drop(DropReason.DELIVERY_FAILED, refused)

    def _tell(self, event: Event) -> None:
        (self._log.warn if event.warning else self._log.info)(event.message, **event.fields)

    def _ring(self) -> None:
        """
        Do what is due, after what has already arrived: an answer that waits in the socket is none missed
        (R7).
        """
        self._udp.drain()
        self.perform(self.node.advance)

    # --- commands -----------------------------------------------------------------------------------------

    def status(self) -> Mapping[str, Any]:
        """Return what `rvpn status --json` prints."""
        now = self.now()
        return {
            "version": __version__,
            "uptime": round(now - self._started_at, 3),
            "device": self._tun.name,
            "mtu": self.mtu,
            "certificate": self._certificate_status(),
            "offloads": {self._tun.name: self._tun.offloads, **self._udp.offloads},
            "refusals": {**self._udp.refusals, **self._tun.refusals},
            **self.node.status(now),
        }

    def _certificate_status(self) -> Mapping[str, Any] | None:
        own = self._configuration.credentials.certificates
        if own is None:
            return None
        lists = [
            {
                "authority": state.authority,
                "number": state.number,
                "made": state.made_at,
                "expires": state.ends_at,
                "revoked": state.revoked,
            }
            for state in own.lists.values()
        ]
        expires = next(iter(own.ends.values()))
        return {"name": own.name, "expires": expires, "expired": expires < time(), "lists": lists}

    def _read_certificates(self, changed: Collection[Path]) -> bool:
        """
        Read certificates and lists again, of which these files `changed`; tell whether they are in force.

        While one is faulty, those before stay so.
        """
        before = self._configuration
        try:
            read = configuration.read_certificates(before.policy, self._file.parent, self.role)
            check_lists(before.credentials.certificates, read)
        except LocalError as error:
            self._log.error("the certificates were not read again: {fault}", fault=str(error))
            return False
        credentials = replace(before.credentials, certificates=read)
        self._configuration = replace(before, credentials=credentials)
        lists = "; ".join(map(in_words, read.lists.values())) if read is not None else ""
        self._log.info(
            "the certificates were read again (changed: {files}): {lists}",
            files=named(changed, self._file.parent),
            lists=lists,
        )
        self.perform(self.node.certify, credentials)
        return True

    def reload(self) -> Mapping[str, Any]:
        """Read the policy again. Raises `LocalError` if that cannot be; then all is as before."""
        try:
            self._take_over(configuration.read(self._file, self.role))
        except LocalError as error:
            for line in str(error).splitlines():
                self._log.error("the policy was not read again: {fault}", fault=line)
            raise
        self._log.info("the policy was read again")
        return {"role": self.role.value}

    def _take_over(self, after: Configuration) -> None:
        before = self._configuration
        if fixed := before.fixed_but_changed(after):
            names = ", ".join(fixed)
            raise LocalError(f"{self._file}: {names} changed, which takes a restart; nothing was changed")
        check_lists(before.credentials.certificates, after.credentials.certificates)
        try:
            self._prepare_host(after.policy)
            self._follow_link(after.policy)
        except LocalError as error:
            self._go_back(before.policy, error)
            raise
        self._configuration = after
        self.perform(lambda now: self.node.reload(self._resolved(after.policy), now, after.credentials))

    def _go_back(self, policy: Policy, cause: LocalError) -> None:
        """Prepare the host for the policy in force, after `cause` kept it from the change to another one."""
        try:
            self._prepare_host(policy)
        except LocalError as error:
            raise LocalError(f"{cause}\nand the former routes could not be restored: {error}") from cause
