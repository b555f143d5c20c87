"""
Numbers and names that both ends must agree on, and the sizes and times that rvpn chose.

The first half is fixed by a specification, named beside each value; the second half, by subject, is ours to
tune.
"""

from enum import Enum, IntEnum, unique

# --- Fixed by specifications --------------------------------------------------------------------

#: The first four bytes of a key exchange datagram: RFC 3948's non-ESP marker.
KEY_EXCHANGE_MARKER = b"\0\0\0\0"
#: The SPI of session control packets, the patent's heartbeat SPI.
CONTROL_SPI = 0xFFFFFFFF
#: RFC 3948 section 2.3.
NAT_KEEPALIVE = b"\xff"
#: SPIs 1 to 255 are reserved (RFC 4303 section 2.1), 0xFFFFFFFF is the control SPI.
MIN_SPI, MAX_SPI = 256, 0xFFFFFFFE
#: The UDP port of RFC 3948, so that Wireshark and scapy read what we send.
DEFAULT_PORT = 4500
#: RFC 8200 section 5: every IPv6 link carries packets of this many bytes, so no tunnel MTU is smaller.
MIN_TUNNEL_MTU = 1280
UDP_HEADER = 8
IP_HEADER = {4: 20, 6: 40}
#: Bytes of a virtio_net_hdr without the number of buffers (linux/virtio_net.h), before each inner packet.
VNET_HEADER = 10


@unique
class NextHeader(IntEnum):
    """
    What an ESP packet carries (RFC 4303 section 2.6).

    PARTIAL is IPv4 or IPv6 with a TCP or UDP checksum that the receiver completes; the number is one for
    experiments (RFC 3692), and only those who agreed on it in the key exchange send it. So is that of TRAIN,
    a segment of a super-packet (rvpn.datapath.trains).
    """

    IPV4 = 4
    IPV6 = 41
    DUMMY = 59
    PARTIAL = 253
    TRAIN = 254


@unique
class TransformID(IntEnum):
    """ESP transforms, by their numbers in the IANA registry of IKEv2 encryption transforms."""

    AES_GCM_16_256 = 20
    CHACHA20_POLY1305 = 28


#: How the policy and `rvpn status` call the transforms.
TRANSFORM_NAMES = {
    TransformID.AES_GCM_16_256: "aes-gcm-256",
    TransformID.CHACHA20_POLY1305: "chacha20-poly1305",
}


@unique
class Mechanism(IntEnum):
    """Ways to authenticate; the number is the one in key exchange datagrams."""

    NOISE = 1
    TLS = 2


@unique
class Role(Enum):
    """Which end of the tunnel this node is."""

    CLIENT = "client"
    GATEWAY = "gateway"


@unique
class HeartbeatMode(Enum):
    """The patent's three settings of `Heartbeat` (R9)."""

    NONE = "NONE"
    DEFERRED = "DEFERRED"
    INSTANT = "INSTANT"


@unique
class LanPresence(Enum):
    """How targets find a client's inner address (DESIGN 8)."""

    PROXY_ARP = "proxy-arp"
    NONE = "none"


# --- Chosen by rvpn -----------------------------------------------------------------------------

# ESP, and the way of packets

#: What one sendmsg with UDP_SEGMENT takes: bytes (the longest IP packet, less headers) and datagrams (kernels
#: before 6.9 refuse more).
RUN_BYTES, RUN_DATAGRAMS = 0xFFFF - 48, 64
#: Bytes of a batch's buffer: a wake-up's work, and what is added by sealing it.
BATCH_CAPACITY = 5 << 16
#: Bytes that a segment of a train has beside its headers and payload (rvpn.datapath.trains).
TRAIN_FIELDS = 4
#: Packets that may arrive out of order without being taken for replays (RFC 6479); at least 4096.
REPLAY_WINDOW = 4096
#: The MTU of a link about which nothing is known: Ethernet's.
LINK_MTU = 1500
#: Seconds for which a learnt, lowered path MTU is believed (RFC 1191 section 6.3).
PATH_MTU_LIFETIME = 600.0
#: Packets that wait for one cluster's session, and their bytes, the oldest dropped first (R2).
QUEUE_LENGTH, QUEUE_BYTES = 64, 1 << 18

# The life of keys

#: Seconds an SA lives by default (`KeyLifetime`): 120 minutes.
KEY_LIFETIME = 7200.0
#: The shortest `KeyLifetime` of a policy, and so the shortest that is taken from a peer.
MIN_KEY_LIFETIME = 1.0
#: An SA closes for good at its lifetime times this: by then several rekeys have failed.
HARD_LIFETIME_FACTOR = 1.5
#: A rekey begins at the SA's lifetime times a random number from this one to 1.
REKEY_JITTER = 0.9
#: An SA is renewed after this many packets, and never used beyond the hard limit below the 32-bit wrap.
REKEY_PACKETS = 1 << 31
HARD_LIMIT_PACKETS = 0xFFFFFFFF - (1 << 16)
#: Seconds after which an SA's packet count is looked at again.
REKEY_WATCH_INTERVAL = 60.0
#: Seconds an inbound SA waits for the packet that confirms it.
CONFIRMATION_TIME = 5.0
#: Seconds an inbound SA stays open after its successor was confirmed.
OLD_SA_LINGER = 10.0
#: Seconds after which it is looked again whether a peer's certificate has expired: clocks are set.
CERTIFICATE_WATCH_INTERVAL = 3600.0

# Key exchange

#: Version byte of key exchange datagrams.
KEY_EXCHANGE_VERSION = 1
#: Largest UDP payload of key exchange datagrams: fits the smallest IPv6 MTU.
KEY_EXCHANGE_DATAGRAM = 1232
#: Seconds for one exchange with one gateway before the next is tried (R3).
EXCHANGE_TIME = 2.0
#: Seconds an unanswered token waits for its retransmission; after so many the wait doubles each time.
RETRANSMIT_INTERVAL, RETRANSMIT_CONSTANT = 0.1, 6
#: Seconds before a rejected key request may be repeated: the first and the longest (R3).
BACKOFF_FIRST, BACKOFF_LAST = 1.0, 8.0

# Session control and heartbeats

#: How often a claim, close or status is sent in all, and the seconds between (DESIGN 6).
CONTROL_REPEATS, CONTROL_INTERVAL = 4, 0.1
#: Seconds: the shortest wait for a heartbeat's answer that is derived from round trips (X6, X7).
RESPONSE_FLOOR = 0.01
#: Seconds that an answer may take while no round trip was measured (X7).
RESPONSE_UNMEASURED = 1.0
#: Seconds of silence before a heartbeat with `auto`: at least, and without payload for IDLE_AFTER (X7).
AUTO_DEFER_FLOOR, AUTO_DEFER_IDLE = 0.025, 1.0
IDLE_AFTER = 10.0
#: Round trips that a client asks for, while packets arrive, to know an `auto` response time (X7): so many
#: forget a first sample that was fifteen times too long.
ROUND_TRIP_SAMPLES = 24
#: Seconds between heartbeats that a gateway asks its clients to keep at least (X7).
SHORTEST_DEFER = 0.02
#: Seconds after which a client makes sure that the gateway hears it (X8, `HeartbeatConfirmTime`).
CONFIRM_TIME = 10.0
#: The part of HeartbeatConfirmTime that its heartbeat waits for an answer where that is `auto` (X7, X8).
CONFIRM_SHARE = 0.1
#: Seconds by which a deadline may be missed before the miss is held against ourselves (R7).
LATE = 0.001
#: Heartbeats of one detector whose answers are still waited for.
OUTSTANDING_HEARTBEATS = 8
#: Packets back to which an ICMP error may refer to be believed (X6).
RECENT_PACKETS = 1024

# Which gateway is used

#: Seconds for which a gateway that failed is not returned to (X2, `FailbackHoldDown`).
FAILBACK_HOLD_DOWN = 60.0
#: The longest time for which a gateway that fails again and again is not returned to (X2).
LONGEST_HOLD_DOWN = 3600.0

# What a gateway does

#: Seconds that a new address has to prove itself alone before a session moves there, at least (DESIGN 3).
ROAMING_PATIENCE = 0.05
#: Seconds for which a session is not challenged again after its old address has answered.
ROAMING_PAUSE = 0.5
#: What a gateway does each second for those it has no session with: lost-key notices (X3), calls (R12).
NOTICES_PER_SECOND, CALLS_PER_SECOND = 100, 50
#: Packets that wait for a client that is being called, and their bytes (R12).
CALL_QUEUE_LENGTH, CALL_QUEUE_BYTES = 16, 1 << 17
#: Literal heartbeats that a gateway answers each second: from one endpoint, and in all (DESIGN 6).
LITERAL_PER_ENDPOINT, LITERAL_IN_ALL = 50, 20_000
#: Probes in a row, answered or not, that change a gateway's mind about its LAN; seconds between them (R14).
PROBE_TRIES, PROBE_INTERVAL = 3, 1.0

# Files and certificates

#: Where a service listens for `rvpn status` and keeps what outlives a process, by default.
DEFAULT_CONTROL_SOCKET = "/run/rvpn/{role}.sock"
DEFAULT_STATE_DIRECTORY = "/var/lib/rvpn/{role}"
#: Days. An authority outlives the machines; a node's certificate leaves five weeks after a year to renew it.
AUTHORITY_LIFETIME, NODE_LIFETIME = 3650, 400
