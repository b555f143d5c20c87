"""
Every key of a policy file, in one table (DESIGN 7).

`statements` reads files by this table; a test holds docs/policy.md and the defaults of `Policy` to it. To add
a key, add its row here, its field in `model`, and the block in the page that the failing test prints.
"""

import re
from dataclasses import dataclass
from typing import Any

from rvpn.constants import DEFAULT_CONTROL_SOCKET, DEFAULT_STATE_DIRECTORY, MIN_KEY_LIFETIME
from rvpn.interfaces import IPAddress
from rvpn.policy import values
from rvpn.policy.values import ValueType


@dataclass(frozen=True, slots=True)
class Key:
    """
    One key: where it stands, what it takes, and the field of `Policy` that holds it.

    `syntax` is the left side of the `=`; `<nr>` in it stands for a number, `[<nr>]` for one that may be
    missing, `<address>` for the address of a gateway. `default` is what a missing key means, written as in a
    file; `<role>` in it stands for `client` or `gateway`. `example` is a whole statement.
    """

    section: str
    syntax: str
    field: str
    type: ValueType[Any]
    description: str
    example: str
    default: str | None = None
    unit: str | None = None

    @property
    def keyword(self) -> str:
        """The fixed part of the syntax; empty where the key is an address."""
        return self.statement(None)

    @property
    def numbered(self) -> bool:
        """Whether a file may hold several statements of this key, told apart by number."""
        return "<nr>" in self.syntax

    @property
    def number_required(self) -> bool:
        """Whether a number must follow the keyword."""
        return self.numbered and "[<nr>]" not in self.syntax

    def statement(self, label: int | IPAddress | None) -> str:
        """Name one statement as the file would: `Port`, `Tunnel1`, `Cluster 1`, or `Cluster` for None."""
        return re.sub(r"\[?<\w+>\]?", "" if label is None else str(label), self.syntax).strip()


KEYS = (
    Key(
        section="GENERAL",
        syntax="Heartbeat",
        field="heartbeat",
        type=values.HEARTBEAT,
        default="NONE",
        description="Whether the client watches the gateway in use, and whether an idle client keeps silent"
        " (`DEFERRED`) or sends heartbeats at once (`INSTANT`).",
        example="Heartbeat = INSTANT",
    ),
    Key(
        section="GENERAL",
        syntax="HeartbeatResponseTime",
        field="heartbeat_response_time",
        type=values.unless("auto", values.number(0.001, 3600)),
        unit="seconds",
        default="1",
        description="How long the client waits for the answer to a heartbeat; a gateway that leaves two"
        " unanswered has failed.",
        example="HeartbeatResponseTime = 0.1",
    ),
    Key(
        section="GENERAL",
        syntax="HeartbeatDeferTime",
        field="heartbeat_defer_time",
        type=values.unless("auto", values.number(0.001, 3600)),
        unit="seconds",
        default="5",
        description="How long the gateway in use must be silent before the client sends it a heartbeat.",
        example="HeartbeatDeferTime = 0.2",
    ),
    Key(
        section="GENERAL",
        syntax="HeartbeatConfirmTime",
        field="heartbeat_confirm_time",
        type=values.number(0, 3600),
        unit="seconds",
        default="10",
        description="How long the client may send without an answer to a heartbeat although packets arrive:"
        " what it sends may go nowhere. 0 asks for none, as the patent has it.",
        example="HeartbeatConfirmTime = 2",
    ),
    Key(
        section="GENERAL",
        syntax="HeartbeatAuthentication",
        field="literal_heartbeats",
        type=values.HEARTBEAT_AUTHENTICATION,
        default="yes",
        description="`none` takes the patent's literal heartbeat, an unauthenticated echo; client and gateway"
        " must agree.",
        example="HeartbeatAuthentication = none",
    ),
    Key(
        section="GENERAL",
        syntax="Standby",
        field="standby",
        type=values.whole_number(0, 15),
        default="0",
        description="With how many gateways after the one in use the client keeps sessions, so that a"
        " failover is a switch and no key exchange.",
        example="Standby = 1",
    ),
    Key(
        section="GENERAL",
        syntax="Failback",
        field="failback",
        type=values.YES_NO,
        default="no",
        description="Whether the client returns to a gateway that stands earlier in the order.",
        example="Failback = yes",
    ),
    Key(
        section="GENERAL",
        syntax="FailbackHoldDown",
        field="failback_hold_down",
        type=values.number(1, 3600),
        unit="seconds",
        default="60",
        description="How long a gateway that failed is not returned to; twice as long if it soon fails"
        " again.",
        example="FailbackHoldDown = 300",
    ),
    Key(
        section="GENERAL",
        syntax="RandomizeClusters",
        field="randomize_clusters",
        type=values.YES_NO,
        default="yes",
        description="Whether each cluster is shuffled when the policy is read, so that the clients spread"
        " over its gateways.",
        example="RandomizeClusters = no",
    ),
    Key(
        section="GENERAL",
        syntax="Port",
        field="port",
        type=values.PORT,
        default="4500",
        description="The UDP port of this node and of those it calls.",
        example="Port = 4501",
    ),
    Key(
        section="GENERAL",
        syntax="Listen",
        field="listen",
        type=values.LISTEN,
        default="0.0.0.0 ::",
        description="The local addresses that take part in the tunnel.",
        example="Listen = 192.0.2.1 2001:db8::1",
    ),
    Key(
        section="GENERAL",
        syntax="Offload",
        field="offload",
        type=values.OFFLOAD,
        default="auto",
        description="Whether the kernel and this node do work for many packets at once (`auto`: as far as the"
        " kernel can; `rvpn status` tells).",
        example="Offload = off",
    ),
    Key(
        section="GENERAL",
        syntax="Transforms",
        field="transforms",
        type=values.TRANSFORMS,
        default="auto",
        description="The ESP transforms this node offers or accepts, the preferred first; the order of who"
        " begins an exchange decides. `auto`: both, the one first that a measurement at the start finds"
        " faster.",
        example="Transforms = chacha20-poly1305",
    ),
    Key(
        section="GENERAL",
        syntax="KeyLifetime",
        field="key_lifetime",
        type=values.number(MIN_KEY_LIFETIME, 604800),
        unit="seconds",
        default="7200",
        description="The age at which the keys of a session are replaced.",
        example="KeyLifetime = 3600",
    ),
    Key(
        section="GENERAL",
        syntax="ExchangeTime",
        field="exchange_time",
        type=values.number(0.1, 3600),
        unit="seconds",
        default="2",
        description="How long a key exchange with one gateway may take before the next gateway is tried.",
        example="ExchangeTime = 5",
    ),
    Key(
        section="GENERAL",
        syntax="Mechanism",
        field="mechanism",
        type=values.MECHANISM,
        default="noise",
        description="How the client and those gateways authenticate that `[PEERS]` does not name: with pinned"
        " public keys (`noise`), or with certificates (`tls`).",
        example="Mechanism = tls",
    ),
    Key(
        section="CLUSTER",
        syntax="Cluster [<nr>]",
        field="clusters",
        type=values.MEMBERS,
        description="The gateways that lead to the same targets.",
        example="Cluster 1 = 143.1.0.64 143.1.1.157",
    ),
    Key(
        section="TUNNEL",
        syntax="Tunnel<nr>",
        field="tunnels",
        type=values.TARGET,
        description="Which gateway, cluster or detected access server (`AUTO`) leads to which targets.",
        example="Tunnel1 = 143.1.0.24 - 143.1.0.30 Cluster 1",
    ),
    Key(
        section="TUNNEL",
        syntax="RedirectTunnel<nr>",
        field="redirects",
        type=values.REDIRECTION,
        description="Which gateway or cluster to use where `AUTO` detects this access server.",
        example="RedirectTunnel1 = 192.0.2.1 Cluster 1",
    ),
    Key(
        section="IDENTITY",
        syntax="PrivateKey",
        field="private_key",
        type=values.FILE,
        description="The file that holds this node's private key, as `rvpn keygen` writes it.",
        example="PrivateKey = client.key",
    ),
    Key(
        section="IDENTITY",
        syntax="PresharedKey",
        field="preshared_key",
        type=values.FILE,
        description="The file that holds a secret which both ends mix into every key exchange.",
        example="PresharedKey = shared.key",
    ),
    Key(
        section="IDENTITY",
        syntax="Certificate",
        field="certificate",
        type=values.PEM_FILE,
        description="The file that holds this node's certificate, in PEM.",
        example="Certificate = client.pem",
    ),
    Key(
        section="IDENTITY",
        syntax="CertificateKey",
        field="certificate_key",
        type=values.PEM_FILE,
        description="The file that holds the private key of the certificate, in PEM and not encrypted.",
        example="CertificateKey = client-key.pem",
    ),
    Key(
        section="AUTHORITIES",
        syntax="Authority<nr>",
        field="authorities",
        type=values.AUTHORITY,
        description="The certificate (PEM) of an authority whose certificates are accepted; at a gateway,"
        " also the inner addresses that its clients may have.",
        example="Authority1 = ca.pem 10.9.0.0/16 fd00:9::/64",
    ),
    Key(
        section="AUTHORITIES",
        syntax="Revoked",
        field="revoked",
        type=values.PEM_FILES,
        description="The files of revocation lists (PEM), each signed by one of the authorities.",
        example="Revoked = crl.pem",
    ),
    Key(
        section="PEERS",
        syntax="<address>",
        field="peers",
        type=values.PEER,
        description="How the gateway with this outer address authenticates: with this public key, or with a"
        " certificate for its address (`tls`) or for a DNS name (`tls gw1.example.org`).",
        example="192.0.2.1 = RVhBTVBMRSBwdWJsaWMga2V5IG9mIGdhdGV3YXkgMS4=",
    ),
    Key(
        section="CLIENTS",
        syntax="Client<nr>",
        field="clients",
        type=values.CLIENT,
        description="A client's public key, the inner addresses it may use, and the endpoint to call it at.",
        example="Client1 = RVhBTVBMRSBwdWJsaWMga2V5IG9mIGNsaWVudCAxLi4= 10.9.0.1, fd00:9::1 198.51.100.7",
    ),
    Key(
        section="DEVICE",
        syntax="Name",
        field="device_name",
        type=values.INTERFACE,
        default="rvpn0",
        description="The name of the TUN device.",
        example="Name = vpn1",
    ),
    Key(
        section="DEVICE",
        syntax="InnerAddress",
        field="inner_addresses",
        type=values.INNER_ADDRESSES,
        default="own",
        description="The client's addresses inside the tunnel; `own` stands for its outer address.",
        example="InnerAddress = 10.9.0.1 fd00:9::1",
    ),
    Key(
        section="LAN",
        syntax="Interface",
        field="lan_interface",
        type=values.INTERFACE,
        description="The gateway's interface to the targets.",
        example="Interface = eth1",
    ),
    Key(
        section="LAN",
        syntax="Networks",
        field="lan_networks",
        type=values.NETWORKS,
        description="The networks that clients reach through this gateway.",
        example="Networks = 10.0.0.0/24 fd00:1::/64",
    ),
    Key(
        section="LAN",
        syntax="Presence",
        field="presence",
        type=values.PRESENCE,
        default="none",
        description="How targets find a client: `proxy-arp` answers ARP and neighbour solicitations for the"
        " inner addresses of the clients that use this gateway, `none` leaves the way back to the"
        " administrator.",
        example="Presence = proxy-arp",
    ),
    Key(
        section="LAN",
        syntax="Probe",
        field="probe",
        type=values.HOST,
        description="A machine on the LAN that answers pings; a gateway that hears nothing of it tells its"
        " clients that its LAN is down.",
        example="Probe = 10.0.0.1",
    ),
    Key(
        section="LAN",
        syntax="ProbeInterval",
        field="probe_interval",
        type=values.number(0.01, 3600),
        unit="seconds",
        default="1",
        description="The time between two probes; three in a row without an answer mean that the LAN is down,"
        " three in a row with one that it is up again.",
        example="ProbeInterval = 0.2",
    ),
    Key(
        section="CONTROL",
        syntax="Socket",
        field="control_socket",
        type=values.FILE,
        default=DEFAULT_CONTROL_SOCKET.format(role="<role>"),
        description="The Unix socket behind `rvpn status` and `rvpn reload`.",
        example="Socket = /run/rvpn/client.sock",
    ),
    Key(
        section="CONTROL",
        syntax="StateDirectory",
        field="state_directory",
        type=values.DIRECTORY,
        default=DEFAULT_STATE_DIRECTORY.format(role="<role>"),
        description="The directory for what must outlive the process.",
        example="StateDirectory = /var/lib/rvpn/client",
    ),
)

#: The names of the sections, in the order of the table.
SECTIONS = tuple(dict.fromkeys(key.section for key in KEYS))
