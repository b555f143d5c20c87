"""
Address resolution on an Ethernet: ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861), read and written.

    `read`: a frame -> whose address is where, and which address is asked for
    `answer`, `announcements`: the frames that say that an address is here

Frames are whole, from the Ethernet header on. Addresses and MACs are packed: 4 or 16, and 6 bytes. What we
write is what the owner of the address would write: nothing shows that it is in fact behind a tunnel.
"""

from struct import Struct
from typing import NamedTuple

from rvpn.datapath.packet import checksum
from rvpn.errors import DropReason, RemoteError

ETHERTYPE_ARP, ETHERTYPE_IPV6 = 0x0806, 0x86DD
#: ICMPv6 types of neighbour solicitations and advertisements (RFC 4861 sections 4.3 and 4.4).
SOLICITATION, ADVERTISEMENT = 135, 136
#: The protocol number of ICMPv6.
ICMPV6 = 58

BROADCAST = b"\xff" * 6
#: All nodes of the link (RFC 4291 section 2.7.1), and the prefix of solicited-node groups.
_ALL_NODES = bytes.fromhex("ff02" + 13 * "00" + "01")
_SOLICITED_NODE = bytes.fromhex("ff02" + 9 * "00" + "01ff")

# Destination, source, type.
_ETHERNET = Struct("!6s6sH")
# Hardware, protocol, length of either's addresses, operation; of sender and target MAC and IP address.
_ARP = Struct("!HHBBH6s4s6s4s")
_ARP_FOR_IPV4 = 1, 0x0800, 6, 4
_REQUEST, _REPLY = 1, 2
# Version, class and flow, payload length, next header, hop limit, source, destination.
_IPV6 = Struct("!IHBB16s16s")
# Source, destination, length, next header (RFC 8200 section 8.1).
_PSEUDO_HEADER = Struct("!16s16sII")
# Type, code, checksum, flags, target; options follow.
_DISCOVERY = Struct("!BBHI16s")
_SOLICITED, _OVERRIDE = 1 << 30, 1 << 29
# Type, length in units of 8 bytes, MAC.
_LINK_LAYER_ADDRESS = Struct("!BB6s")
_SOURCE_OPTION, _TARGET_OPTION = 1, 2
#: Of neighbour discovery, so that no router can have forwarded it.
_HOP_LIMIT = 255


class Heard(NamedTuple):
    """
    What a machine on the link said: that `address` is at `mac`, and, if it asks, for which address.

    `address` is all zero where the machine has none yet and only asks whether one is free.
    """

    address: bytes
    mac: bytes
    wanted: bytes | None = None


def read(frame: memoryview) -> Heard | None:
    """
    Return what a frame says; None if it is neither ARP for IPv4 nor neighbour discovery.

    Raises `RemoteError` MALFORMED_NEIGHBOUR.
    """
    if len(frame) < _ETHERNET.size:
        raise _malformed("no Ethernet header")
    _, sender, ethertype = _ETHERNET.unpack_from(frame)
    if ethertype == ETHERTYPE_ARP:
        heard = _read_arp(frame[_ETHERNET.size :])
    elif ethertype == ETHERTYPE_IPV6:
        heard = _read_discovery(frame[_ETHERNET.size :], sender)
    else:
        return None
    if heard is not None and heard.mac[0] & 1:
        raise _malformed("a group as the address of one machine")  # RFC 1812 section 3.3.2
    return heard


def answer(heard: Heard, mac: bytes) -> bytes:
    """Return the frame that answers a question: the address that is wanted is at `mac`."""
    assert heard.wanted is not None
    if len(heard.wanted) == 4:
        return _arp(_REPLY, heard.mac, mac, heard.wanted, heard.mac, heard.address)
    if any(heard.address):
        return _advertisement(heard.wanted, mac, heard.mac, heard.address, _SOLICITED | _OVERRIDE)
    # RFC 4861 section 7.2.4: who has no address yet hears it as one of all.
    return _advertisement(heard.wanted, mac, group_mac(_ALL_NODES), _ALL_NODES, _OVERRIDE)


def announcements(address: bytes, mac: bytes) -> tuple[bytes, ...]:
    """
    Return the frames that tell everybody that `address` is now at `mac`.

    For IPv4 the request that RFC 5227 section 3 prefers, and the reply that some hosts alone take to heart;
    for IPv6 an unsolicited advertisement that overrides what is known (RFC 4861 section 7.2.6).
    """
    if len(address) == 16:
        return (_advertisement(address, mac, group_mac(_ALL_NODES), _ALL_NODES, _OVERRIDE),)
    return (
        _arp(_REQUEST, BROADCAST, mac, address, bytes(6), address),
        _arp(_REPLY, BROADCAST, mac, address, BROADCAST, address),
    )


def solicited_node(address: bytes) -> bytes:
    """Return the group to which solicitations for an IPv6 address go (RFC 4291 section 2.7.1)."""
    return _SOLICITED_NODE + address[-3:]


def group_mac(group: bytes) -> bytes:
    """Return the MAC of an IPv6 group (RFC 2464 section 7)."""
    return b"\x33\x33" + group[-4:]


# --- ARP -------------------------------------------------------------------------------------------------


def _read_arp(packet: memoryview) -> Heard | None:
    if len(packet) < _ARP.size:
        raise _malformed(f"ARP in {len(packet)} bytes")
    *kind, operation, mac, sender, _, target = _ARP.unpack_from(packet)
    if tuple(kind) != _ARP_FOR_IPV4 or operation not in (_REQUEST, _REPLY):
        return None
    asks = operation == _REQUEST and target != sender  # else it is an announcement
    return Heard(sender, mac, target if asks else None)


def _arp(
    operation: int, destination: bytes, mac: bytes, sender: bytes, target_mac: bytes, target: bytes
) -> bytes:
    ethernet = _ETHERNET.pack(destination, mac, ETHERTYPE_ARP)
    return ethernet + _ARP.pack(*_ARP_FOR_IPV4, operation, mac, sender, target_mac, target)


# --- Neighbour discovery ---------------------------------------------------------------------------------


def _read_discovery(packet: memoryview, mac: bytes) -> Heard | None:
    """Read a solicitation or advertisement, with the checks of RFC 4861 sections 7.1.1 and 7.1.2."""
    if len(packet) < _IPV6.size + _DISCOVERY.size:
        raise _malformed(f"neighbour discovery in {len(packet)} bytes")
    _, length, protocol, hop_limit, source, destination = _IPV6.unpack_from(packet)
    kind, code, _, flags, target = _DISCOVERY.unpack_from(packet, _IPV6.size)
    if protocol != ICMPV6 or kind not in (SOLICITATION, ADVERTISEMENT):
        return None
    message = packet[_IPV6.size : _IPV6.size + length]
    if hop_limit != _HOP_LIMIT or code or len(message) != length or length < _DISCOVERY.size:
        raise _malformed("a forwarded or incomplete message")
    if checksum(_PSEUDO_HEADER.pack(source, destination, length, ICMPV6) + message):
        raise _malformed("a wrong checksum")
    if target[0] == 0xFF or source[0] == 0xFF:
        raise _malformed("a group as target or source")
    options = _options(message[_DISCOVERY.size :])
    if kind == ADVERTISEMENT:
        if flags & _SOLICITED and destination[0] == 0xFF:
            raise _malformed("an answer to everybody")
        return Heard(target, options.get(_TARGET_OPTION, mac))
    if not any(source) and (_SOURCE_OPTION in options or destination != solicited_node(target)):
        raise _malformed("a solicitation from nobody")
    return Heard(source, options.get(_SOURCE_OPTION, mac), target)


def _options(options: memoryview) -> dict[int, bytes]:
    """Return the MAC in each option that holds one (RFC 4861 section 4.6); others are passed over."""
    found: dict[int, bytes] = {}
    while options:
        kind, size = options[0], options[1] * 8 if len(options) > 1 else 0
        if not 0 < size <= len(options):
            raise _malformed("options of another length")
        if kind in (_SOURCE_OPTION, _TARGET_OPTION):
            if size != _LINK_LAYER_ADDRESS.size:
                raise _malformed("a link-layer address that is not Ethernet's")
            found[kind] = bytes(options[2:size])
        options = options[size:]
    return found


def _advertisement(
    target: bytes, mac: bytes, destination_mac: bytes, destination: bytes, flags: int
) -> bytes:
    option = _LINK_LAYER_ADDRESS.pack(_TARGET_OPTION, 1, mac)
    size = _DISCOVERY.size + len(option)
    blank = _DISCOVERY.pack(ADVERTISEMENT, 0, 0, flags, target) + option
    proof = checksum(_PSEUDO_HEADER.pack(target, destination, size, ICMPV6) + blank)
    ethernet = _ETHERNET.pack(destination_mac, mac, ETHERTYPE_IPV6)
    ip = _IPV6.pack(6 << 28, size, ICMPV6, _HOP_LIMIT, target, destination)
    return ethernet + ip + _DISCOVERY.pack(ADVERTISEMENT, 0, proof, flags, target) + option


def _malformed(what: str) -> RemoteError:
    return RemoteError(DropReason.MALFORMED_NEIGHBOUR, what)
