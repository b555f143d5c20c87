"""ESP against scapy's, both ways: neither end knows that the other is not its own kind."""

import logging
from collections.abc import Iterator
from itertools import product
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import DEFAULT_PORT, NextHeader, TransformID
from rvpn.esp.sa import InboundSA, OutboundSA
from tests.unit.esp_ends import opened

# Importing scapy reads the machine's interfaces and warns about what it finds missing.
logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.layers.inet import ICMP, IP, UDP  # noqa: E402
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6  # noqa: E402
from scapy.layers.ipsec import ESP, SecurityAssociation  # noqa: E402

SPI = 0x1234ABCD
KEY = bytes(range(32))
SALT = b"salt"
SCAPY_NAMES = {
    TransformID.AES_GCM_16_256: "AES-GCM",
    TransformID.CHACHA20_POLY1305: "CHACHA20-POLY1305",
}
OUTER = {4: IP(src="192.0.2.1", dst="198.51.100.2"), 6: IPv6(src="2001:db8::1", dst="2001:db8:1::2")}
INNER = {
    NextHeader.IPV4: IP(src="10.1.0.2", dst="10.2.0.7") / ICMP(seq=1) / b"an echo request",
    NextHeader.IPV6: IPv6(src="fd00::2", dst="fd01::7") / ICMPv6EchoRequest(seq=1) / b"an echo request",
}


def scapy_sa(transform: TransformID, outer: int, udp: bool) -> Any:
    """Return scapy's end of the SA: raw ESP, or ESP in UDP after RFC 3948."""
    return SecurityAssociation(
        ESP,
        spi=SPI,
        crypt_algo=SCAPY_NAMES[transform],
        crypt_key=KEY + SALT,
        tunnel_header=OUTER[outer].copy(),
        nat_t_header=UDP(sport=DEFAULT_PORT, dport=DEFAULT_PORT) if udp else None,
    )


def combinations() -> Iterator[tuple[TransformID, int, NextHeader, bool]]:
    """Return every transform, outer version, inner version, and raw ESP or ESP in UDP."""
    return product(TransformID, OUTER, INNER, (False, True))


class ScapyInterop(SynchronousTestCase):
    """RFC 4303, RFC 4106, RFC 7634 and RFC 3948, as another implementation reads them."""

    def test_scapy_opens_ours(self) -> None:
        """Our ESP, taken off the wire by scapy, opens to the inner packet."""
        for transform, outer, inner, udp in combinations():
            packet = bytes(INNER[inner])
            sealed = OutboundSA(SPI, transform, KEY, SALT).seal(packet, inner)
            header = OUTER[outer].copy()
            if udp:
                wire = header / UDP(sport=DEFAULT_PORT, dport=DEFAULT_PORT) / sealed
            else:
                header.fields["proto" if outer == 4 else "nh"] = 50
                wire = header / sealed
            received = type(header)(bytes(wire))
            self.assertEqual(bytes(scapy_sa(transform, outer, udp).decrypt(received)), packet)

    def test_we_open_scapys(self) -> None:
        """We open what scapy seals, and so its padding and header pass for RFC 4303's."""
        for transform, outer, inner, udp in combinations():
            encrypted = scapy_sa(transform, outer, udp).encrypt(INNER[inner])
            datagram = memoryview(bytes(encrypted[ESP]))
            self.assertEqual(UDP in encrypted, udp)
            sa = InboundSA(SPI, transform, KEY, SALT)
            self.assertEqual(opened(sa, datagram), (bytes(INNER[inner]), inner))
