"""
Every way in which a certificate can be wrong: the end that refuses it says in its log whose it was, what was
found and what was expected, on the wire goes a reason code alone, and there is no session.
"""

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID
from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import KEY_EXCHANGE_MARKER, Role
from rvpn.keyexchange import tokens
from rvpn.keyexchange.certificates import DIGESTS, KEYS
from tests.certificates import (
    CLIENT_USAGE,
    DAY,
    GATEWAY_USAGE,
    TODAY,
    Authority,
    Careless,
    Issued,
    rsa_key,
    with_sha1,
)
from tests.unit.certified import CA, CertifiedNetwork, client_side, gateway_side
from tests.unit.simulation import INNER, TARGET, udp_packet

OTHER, IMPOSTOR = Authority("Other CA"), Authority("Test CA")
BETWEEN = Authority("Between", CA)
RSA = Authority("RSA CA", key=rsa_key(3072))
PACKET = udp_packet(INNER, TARGET, b"hello")
STRONG = f"expected {KEYS}"
OURS = "expected one by an authority of the policy"


def names(*general: x509.GeneralName) -> x509.UnrecognizedExtension:
    """Return an extension with these names."""
    encoded = x509.SubjectAlternativeName(general).public_bytes()
    return x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, encoded)


#: An extension that says to hold names, and holds none.
RUBBISH = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x30\x03\x87\x09rubbish")
#: An address where a DNS name should be; an SRV name (RFC 4985) that is none, beside the right address.
ADDRESS_AS_DNS = names(x509.DNSName("198.51.100.21"))
STRANGE_NAME = names(
    x509.IPAddress(ip_address("198.51.100.21")),
    x509.OtherName(x509.ObjectIdentifier("1.3.6.1.5.5.7.8.7"), b"\x05\x00"),
)
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
NARROW = x509.NameConstraints([x509.IPAddress(ip_network("10.99.0.128/25"))], None)


def self_signed(**more: Any) -> Issued:
    """Return a certificate that nobody issued."""
    alone = Authority("alice", path_length=-1, **more)
    return Issued(alone.certificate, alone.key)


def using(key: Any) -> Issued:
    """Return a client's certificate for this key."""
    return CA.client(key=key)


Bad = Mapping[str, tuple[Issued, str]]
#: What a client shows, and what the gateway says.
CLIENTS: Bad = {
    "expired": (
        CA.client(end=TODAY - DAY / 2),
        "certificate 'alice': found that it expired on 2023-11-14 10:13:20 UTC, expected one that is valid",
    ),
    "not yet valid": (
        CA.client(start=TODAY + DAY / 2),
        "'alice': found that it is not valid before 2023-11-15 10:13:20 UTC, expected one that is valid now",
    ),
    "wrong authority": (OTHER.client(), f"'alice': found that it is issued by 'Other CA', {OURS}"),
    "impostor": (IMPOSTOR.client(), f"'alice': found a signature that is not 'Test CA''s, {OURS}"),
    "self-signed": (
        self_signed(usages=[CLIENT_USAGE]),
        f"'alice': found that it is signed by itself, {OURS}",
    ),
    "a gateway's": (
        CA.gateway("gw1", "10.99.0.1"),
        "'gw1': found extended key usage serverAuth, expected clientAuth alone, that of a client",
    ),
    "for both": (
        CA.client(usages=[CLIENT_USAGE, GATEWAY_USAGE]),
        "'alice': found extended key usage clientAuth and serverAuth, expected clientAuth alone",
    ),
    "for neither": (
        CA.client(usages=[]),
        "'alice': found extended key usage of neither kind, expected clientAuth alone",
    ),
    "not for signatures": (
        CA.client(digital_signature=False),
        "'alice': found a key usage without digitalSignature, expected one with it",
    ),
    "an authority's": (
        Issued(CA.certificate, CA.key),
        "'Test CA': found that of an authority itself, expected",
    ),
    "RSA 1024": (using(rsa_key(1024)), f"'alice': found an RSA key of 1024 bits, expected {KEYS}"),
    "RSA 2048": (using(rsa_key(2048)), f"'alice': found an RSA key of 2048 bits, expected {KEYS}"),
    "P-521": (
        using(ec.generate_private_key(ec.SECP521R1())),
        f"'alice': found a key on the curve secp521r1, expected {KEYS}",
    ),
    "SHA-1": (
        with_sha1(RSA.client(), rsa_key(3072)),
        f"'alice': found a signature with SHA1, expected {DIGESTS}",
    ),
    "chain cut": (BETWEEN.client(), f"'alice': found that it is issued by 'Between', {OURS}"),
    "no addresses": (CA.client(names=()), "'alice': found 0 IP addresses, expected its inner addresses"),
    "no IP addresses": (CA.client("bob", "bob.example.org"), "'bob': found 0 IP addresses, expected its"),
    "outside the range": (
        CA.client("alice", "10.99.0.1", "10.98.0.1"),
        "'alice': found inner address 10.98.0.1, expected those of Authority1 (10.99.0.0/24)",
    ),
    "no name": (CA.client(""), "certificate '': found no usable common name, expected one of"),
    "bad name": (CA.client("al\nice"), "certificate 'al\\nice': found no usable common name, expected"),
    "garbage": (CA.client(instead=RUBBISH), "a certificate: found contents that cannot be read"),
}
#: What comes with another authority's certificate beside it, and what the gateway says.
CHAINS: Mapping[str, tuple[Issued, Issued, str]] = {
    "wrong authority": (
        OTHER.client(),
        OTHER,
        "an authority's certificate 'Other CA': found none of the policy's authorities, expected one of them",
    ),
    "chain too long": (
        BETWEEN.client(),
        BETWEEN,
        "an authority's certificate 'Between': found none of the policy's authorities, expected one of them",
    ),
}
#: What a gateway shows, and what the client says.
GATEWAYS: Bad = {
    "wildcard": (
        CA.gateway("gw1", "198.51.100.21", "*.example.org"),
        "'gw1': found the wildcard '*.example.org', expected names of one gateway",
    ),
    "expired": (
        CA.gateway(end=TODAY - DAY / 2),
        "certificate 'gw1': found that it expired on 2023-11-14 10:13:20 UTC, expected one that is valid",
    ),
    "wrong authority": (OTHER.gateway(), f"'gw1': found that it is issued by 'Other CA', {OURS}"),
    "a client's": (
        CA.client("alice", "198.51.100.21"),
        "'alice': found extended key usage clientAuth, expected serverAuth alone, that of a gateway",
    ),
    "another gateway's": (
        CA.gateway("gw2", "198.51.100.22", "gw2.example.org"),
        "'gw2': found the names 198.51.100.22, DNS name 'gw2.example.org', expected 198.51.100.21 among",
    ),
    "no names": (CA.gateway(names=()), "'gw1': found the names none ("),
    "an address as DNS name": (
        CA.gateway(instead=ADDRESS_AS_DNS),
        "'gw1': found the address 198.51.100.21 as a DNS name, expected it as an IP address",
    ),
    "a strange name": (CA.gateway(instead=STRANGE_NAME), "'gw1': found the names 198.51.100.21 ('"),
    "unknown": (CA.gateway(critical=UNKNOWN), "'gw1': found a critical extension that is unknown here, exp"),
    "garbage": (CA.gateway(instead=RUBBISH), "a certificate: found contents that cannot be read"),
}


class BadCertificateTests(SynchronousTestCase):
    """A client shows a certificate to a gateway, and a gateway to a client; the other end has a good one."""

    def refuse(self, network: CertifiedNetwork, log: list[str], words: str) -> None:
        """Let the client ask for a session, and assert that it is refused with these words."""
        network.send(network.client, PACKET)
        network.run(3)
        self.assertTrue(any(words in line for line in log), (words, log))
        self.assertTrue(all(line.isprintable() for line in log))
        self.assertEqual([len(host.node.cache) for host in network.hosts], [0, 0])
        self.assertEqual(network.gateways[0].delivered, [])

    def refuse_client(self, end: Careless, words: str, authority: Authority = CA) -> None:
        """Assert that a gateway refuses a client, whom it tells no more than a reason code."""
        gateway = gateway_side(authority.gateway(), authority=authority)
        network = CertifiedNetwork(client_ends=[end], gateway_ends=[gateway])
        self.refuse(network, network.gateways[0].events, words)
        spoken = [d for _, d, source, _ in network.sent if source == network.gateways[0].endpoint]
        messages = [tokens.decode(d) for d in spoken if d[:4] == KEY_EXCHANGE_MARKER]
        codes = {message.reason for message in messages if isinstance(message, tokens.Rejection)}
        self.assertEqual(codes, {tokens.Rejected.AUTHENTICATION_FAILED})
        self.assertEqual(len(messages), len(spoken))
        kinds = {type(message) for message in messages}
        self.assertLessEqual(
            kinds, {tokens.CookieDemand, tokens.Acknowledgement, tokens.Fragment, tokens.Rejection}
        )

    def test_clients(self) -> None:
        """Of a bad client the gateway's log tells, and the client is told a reason code."""
        for name, (own, words) in CLIENTS.items():
            with self.subTest(name):
                authority = RSA if name == "SHA-1" else CA
                self.refuse_client(Careless(Role.CLIENT, own), words, authority)

    def test_chains(self) -> None:
        """Nor does it help to bring other authorities along."""
        for name, (own, beside, words) in CHAINS.items():
            with self.subTest(name):
                self.refuse_client(Careless(Role.CLIENT, own, beside), words)

    def test_name_constraints(self) -> None:
        """What an authority may not name is refused, in words."""
        narrow = Authority("Narrow CA", critical=NARROW)
        words = "'alice': found a name outside the name constraints of its authority, expected one within"
        self.refuse_client(Careless(Role.CLIENT, narrow.client()), words, narrow)

    def test_gateways(self) -> None:
        """Of a bad gateway the client's log tells; the gateway is told nothing."""
        for name, (own, words) in GATEWAYS.items():
            with self.subTest(name):
                network = CertifiedNetwork(gateway_ends=[Careless(Role.GATEWAY, own)])
                self.refuse(network, network.client.events, words)

    def test_revoked(self) -> None:
        """A revoked certificate is as bad as the others, at either end."""
        own = CA.client()
        network = CertifiedNetwork(
            client_ends=[client_side(own)], gateway_ends=[gateway_side(CA.gateway(), revoked=[own])]
        )
        words = "certificate 'alice': found it is revoked, expected one that is not"
        self.refuse(network, network.gateways[0].events, words)
        gateway = CA.gateway()
        network = CertifiedNetwork(
            client_ends=[client_side(own, revoked=[gateway])], gateway_ends=[gateway_side(gateway)]
        )
        self.refuse(network, network.client.events, "certificate 'gw1': found it is revoked")
