"""
A node at work: sockets, TUN device and timer around a calculation (`rvpn.interfaces.Node`).

    TUN device -> packetReceived -> node.outbound -> UDP
    UDP -> TunnelProtocol -> node.inbound -> TUN device, or node.key_exchange -> UDP
    alarm -> node.advance; SIGHUP, `rvpn reload` -> the policy is read again; `rvpn status` -> node.status

`open` takes everything from the host that the role needs and raises `LocalError` if something is missing,
before twistd leaves the terminal; `stopService` says good-bye to the peers and gives everything back.
"""

import errno
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from random import SystemRandom
from typing import Any, ClassVar, Generic, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from rvpn import __version__
from rvpn.client import Client
from rvpn.constants import Role
from rvpn.errors import DropReason, LocalError
from rvpn.gateway import Gateway
from rvpn.interfaces import Action, DatagramBatch, Deliver, Event, PacketBatch, Send
from rvpn.net import alarm
from rvpn.net.host import OUTER_MARK, HostChanges
from rvpn.net.netlink import Netlink
from rvpn.net.tun import TunPort
from rvpn.net.udp import UDPPorts
from rvpn.policy import Policy
from rvpn.service import configuration
from rvpn.service.configuration import Configuration
from rvpn.service.control import ControlServer
from rvpn.service.protocols import TunnelProtocol
from rvpn.state import StateDirectory

NodeT = TypeVar("NodeT", Client, Gateway)

#: Bytes of a batch's buffer: what one system call brings at most, and the overhead of sealing it.
BATCH_CAPACITY = 1 << 17
#: Seconds that a stopping service waits for its peers to acknowledge.
FAREWELL = 0.5
#: What the kernel says where it knows no way to a peer (R3).
_NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


class TunnelService(Service, ABC, Generic[NodeT]):
    """One role at work; `rvpn.service.client` and `rvpn.service.gateway` say what differs."""

    role: ClassVar[Role]
    node: NodeT
    mtu: int
    _log = Logger()

    def __init__(self, file: str, reactor: Any) -> None:
        """`file` is the policy's; nothing happens before `open`."""
        self._file = file
        self._reactor = reactor
        self._random = SystemRandom()
        self._sealed = DatagramBatch(BATCH_CAPACITY)
        self._opened = PacketBatch(BATCH_CAPACITY)
        self._resources = ExitStack()
        self.now: Callable[[], float] = alarm.now

    # --- what the roles decide ----------------------------------------------------------------------------

    @abstractmethod
    def _make_node(self, configuration: Configuration) -> NodeT:
        """Return the node; the host is prepared."""

    @abstractmethod
    def _prepare_host(self, policy: Policy) -> int:
        """
        Give the TUN device its addresses and the host its routes; on a reload, what changed of them.

        Returns the MTU of the TUN device (DESIGN 3).
        """

    # --- start and stop -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Take what the role needs from the host. Raises `LocalError`, and then holds nothing."""
        with self._resources:
            self._configuration = config = configuration.read(self._file, self.role)
            state = StateDirectory(config.state_directory)
            self._resources.callback(state.close)
            self._netlink = Netlink()
            self._resources.callback(self._netlink.close)
            policy = config.policy
            self._host = HostChanges(state, self.role, policy.port, self._netlink)
            self._host.recover()
            self._resources.callback(self._host.undo)
            received = DatagramBatch(BATCH_CAPACITY)
            self._udp = UDPPorts(
                policy.listen, policy.port, TunnelProtocol(self), self._reactor, received, OUTER_MARK
            )
            self._resources.callback(self._udp.close)
            self._tun = TunPort(policy.device_name, self, self._reactor)
            self._resources.callback(self._tun.close)
            self.mtu = self._prepare_host(policy)
            self.node = self._make_node(config)
            commands = {"status": self.status, "reload": self.reload}
            self._control = ControlServer(str(config.control_socket), commands)
            self._control.start(self._reactor)
            self._resources = self._resources.pop_all()

    def startService(self) -> None:
        """Begin to carry packets."""
        super().startService()
        self._started_at = self.now()
        self._alarm = alarm.Alarm(self._ring, self._reactor)
        self._udp.startReading()
        self._tun.startReading()
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._reload_by_signal))
        fields = {"role": self.role.value, "device": self._tun.name, "mtu": self.mtu}
        self._log.info("rvpn {role} is ready: device {device}, MTU {mtu}", **fields)

    @inlineCallbacks
    def stopService(self) -> Any:
        """Close the sessions, wait a moment for the peers to acknowledge, and give everything back."""
        super().stopService()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        self._tun.stopReading()
        self.act(self.node.close(self.now()))
        deadline = self.now() + FAREWELL
        while not self.node.quiet and self.now() < deadline:
            yield deferLater(self._reactor, 0.02)
        self._alarm.close()
        yield self._control.stop()
        self._resources.close()
        self._log.info("rvpn {role} has stopped", role=self.role.value)

    # --- packets ------------------------------------------------------------------------------------------

    def packetReceived(self, packet: memoryview) -> None:
        """Take an inner packet from the TUN device (`rvpn.net.tun.PacketReceiver`)."""
        sealed = self._sealed
        sealed.clear()
        actions = self.node.outbound(packet, sealed, self.now())
        if sealed.count and not self._udp.send(sealed):
            self.node.drop(DropReason.SEND_FAILED)
        self.act(actions)

    def datagramsReceived(self, batch: DatagramBatch) -> None:
        """Take ESP and session control from the network (`TunnelProtocol`)."""
        opened = self._opened
        opened.clear()
        actions = self.node.inbound(batch, opened, self.now())
        for start, end in opened.spans:
            self._deliver(opened.view[start:end])
        self.act(actions)

    def deviceLost(self, reason: Failure) -> None:
        """Stop: without its TUN device a node is of no use, and who started it can start it again."""
        self._log.critical("the TUN device is lost: {reason}", reason=reason.getErrorMessage())
        self._reactor.stop()

    def act(self, actions: Iterable[Action]) -> None:
        """Carry out what the node asks for, and set the alarm to its next deadline."""
        for action in actions:
            if isinstance(action, Send):
                self._send(action)
            elif isinstance(action, Deliver):
                self._deliver(action.packet)
            else:
                self._tell(action)
        self._alarm.set(self.node.deadline())

    def _send(self, action: Send) -> None:
        if self._udp.sendDatagram(action.datagram, action.path):
            return
        self.node.drop(DropReason.SEND_FAILED)
        if self._udp.send_errno in _NO_WAY:
            self.act(self.node.unreachable(action.path.remote, self.now()))

    def _deliver(self, packet: bytes | memoryview) -> None:
        if not self._tun.write(packet):
            self.node.drop(DropReason.DELIVERY_FAILED)

    def _tell(self, event: Event) -> None:
        (self._log.warn if event.warning else self._log.info)(event.message, **event.fields)

    def _ring(self) -> None:
        self.act(self.node.advance(self.now()))

    # --- commands -----------------------------------------------------------------------------------------

    def status(self) -> Mapping[str, Any]:
        """Return what `rvpn status --json` prints."""
        now = self.now()
        return {
            "version": __version__,
            "uptime": round(now - self._started_at, 3),
            "device": self._tun.name,
            "mtu": self.mtu,
            **self.node.status(now),
        }

    def reload(self) -> Mapping[str, Any]:
        """Read the policy again. Raises `LocalError` if it has errors; then nothing changes."""
        before = self._configuration
        after = configuration.read(self._file, self.role)
        if fixed := _fixed_at_start(before, after):
            raise LocalError(f"{self._file}: {fixed} changed, which takes a restart; nothing was changed")
        self._configuration = after
        self.mtu = self._prepare_host(after.policy)
        self.act(self.node.reload(after.policy, self.now()))
        self._log.info("the policy was read again")
        return {"role": self.role.value}

    def _reload_by_signal(self) -> None:
        try:
            self.reload()
        except LocalError as error:
            for line in str(error).splitlines():
                self._log.error("the policy was not read again: {line}", line=line)


def _fixed_at_start(before: Configuration, after: Configuration) -> str:
    """Return the names of settings that differ and that a running service cannot change."""
    names = {
        "Port": "port",
        "Listen": "listen",
        "ExchangeTime": "exchange_time",
        "Name of [DEVICE]": "device_name",
        "InnerAddress": "inner_addresses",
        "Interface of [LAN]": "lan_interface",
    }
    changed = [
        name
        for name, attribute in names.items()
        if getattr(before.policy, attribute) != getattr(after.policy, attribute)
    ]
    places = replace(before, policy=after.policy) == replace(after, policy=after.policy)
    return ", ".join(changed) if changed or places else "a key or a path"
