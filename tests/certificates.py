"""
Certificates for tests, good ones and bad ones: what an authority, a gateway or a client would present.

    Authority -> `gateway`, `client`, `issue` -> Issued: certificate and key, as objects and as PEM

`issue` makes whatever it is asked for, also what no authority should: that is what this module is for.
"""

import datetime
from collections.abc import Iterable, Sequence
from functools import cache
from ipaddress import ip_address
from itertools import count
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from rvpn.constants import Mechanism, Role
from rvpn.interfaces import Authentication, IPAddress, IPNetwork, PeerIdentity
from rvpn.keyexchange.authenticator import CertificateAuthenticator, CertificateFiles
from rvpn.keyexchange.certificates import Authority as Accepted
from rvpn.keyexchange.certificates import Judgement
from rvpn.keyexchange.revocation import with_lists

#: The time of day in tests, in seconds since 1970; certificates are good for a day before and after it.
TODAY = 1_700_000_000.0
DAY = 86400.0
CLIENT_USAGE, GATEWAY_USAGE = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
#: The end of the OIDs of RSA with SHA-256 and with SHA-1 (RFC 8017 appendix C), in an AlgorithmIdentifier.
_RSA_SHA256, _RSA_SHA1 = bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d010105")

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_serials = count(1)


@cache
def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    """Return an RSA key; to make a long one takes a while, so there is one of each length."""
    return rsa.generate_private_key(65537, bits)


def moment(seconds: float) -> datetime.datetime:
    """Return a time in seconds since 1970 as certificates have it."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Issued:
    """A certificate with its key."""

    def __init__(self, certificate: x509.Certificate, key: PrivateKey) -> None:
        self.certificate = certificate
        self.key = key

    @property
    def pem(self) -> bytes:
        """The certificate as a file holds it."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key as a file holds it."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Authority(Issued):
    """One that issues; with an `issuer` it is an intermediate one."""

    def __init__(
        self,
        name: str = "Test CA",
        issuer: "Authority | None" = None,
        path_length: int | None = 0,
        **more: Any,
    ) -> None:
        key: PrivateKey = more.pop("key", None) or ed25519.Ed25519PrivateKey.generate()
        self.name = name
        signer = None if issuer is None else issuer.key
        issued = (issuer or self)._build(name, key, authority=path_length, signer=signer, **more)
        super().__init__(issued, key)

    def issue(self, name: str, **more: Any) -> Issued:
        """Return a certificate for somebody; the keywords are those of `_build`, and `key`."""
        key: PrivateKey = more.pop("key", None) or ed25519.Ed25519PrivateKey.generate()
        return Issued(self._build(name, key, signer=self.key, **more), key)

    def client(self, name: str = "alice", *addresses: str, **more: Any) -> Issued:
        """Return a client's certificate."""
        return self.issue(name, **{"names": addresses or ("10.99.0.1",), "usages": [CLIENT_USAGE], **more})

    def gateway(self, name: str = "gw1", *names: str, **more: Any) -> Issued:
        """Return a gateway's certificate."""
        return self.issue(name, **{"names": names or ("198.51.100.21",), "usages": [GATEWAY_USAGE], **more})

    def _build(
        self,
        name: str,
        key: PrivateKey,
        names: Iterable[str] = (),
        *,
        usages: Sequence[x509.ObjectIdentifier] = (),
        authority: int | None = -1,
        signer: PrivateKey | None = None,
        start: float = TODAY - DAY,
        end: float = TODAY + DAY,
        serial: int | None = None,
        digital_signature: bool = True,
        instead: x509.UnrecognizedExtension | None = None,
        critical: x509.ExtensionType | None = None,
    ) -> x509.Certificate:
        """
        `authority` is the path length, -1 for none of them; without `signer` it is signed by itself.

        `instead` takes the place of the extension of the same kind, `critical` is one more.
        """
        issues = authority != -1
        signer = signer or key
        usage = x509.KeyUsage(
            digital_signature and not issues, False, False, False, not issues, issues, issues, False, False
        )
        extensions: list[x509.ExtensionType] = [
            x509.BasicConstraints(issues, authority if issues else None),
            usage,
        ]
        if general := [_general(other) for other in names]:
            extensions.append(x509.SubjectAlternativeName(general))
        if usages:
            extensions.append(x509.ExtendedKeyUsage(usages))
        if instead is not None:
            extensions = [instead if other.oid == instead.oid else other for other in extensions]
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(self.name))
            .public_key(key.public_key())
            .serial_number(serial or next(_serials))
            .not_valid_before(moment(start))
            .not_valid_after(moment(end))
        )
        for number, extension in enumerate(extensions):
            builder = builder.add_extension(extension, critical=number < 2)
        if critical is not None:
            builder = builder.add_extension(critical, critical=True)
        return builder.sign(signer, _digest(signer))

    def revocation(self, *certificates: Issued, **more: Any) -> x509.CertificateRevocationList:
        """Return a list of these."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(_name(self.name))
            .last_update(moment(more.get("start", TODAY - DAY)))
            .next_update(moment(more.get("end", TODAY + DAY)))
        )
        for issued in certificates:
            serial = issued.certificate.serial_number
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder(serial, moment(TODAY - 1)).build()
            )
        if "number" in more:
            builder = builder.add_extension(x509.CRLNumber(more["number"]), critical=False)
        return builder.sign(self.key, _digest(self.key))

    def accepted(self, *networks: IPNetwork, revoked_ones: Sequence[Issued] = ()) -> Accepted:
        """Return this authority as a policy's, with what it revoked."""
        accepted = Accepted("Authority1", self.certificate, networks)
        return with_lists(accepted, [self.revocation(*revoked_ones)] if revoked_ones else [])


def _digest(key: PrivateKey) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def with_sha1(issued: Issued, issuer: rsa.RSAPrivateKey) -> Issued:
    """Return such a certificate, but signed by `issuer` with RSA and SHA-1: cryptography makes none."""
    tbs = issued.certificate.tbs_certificate_bytes.replace(_RSA_SHA256, _RSA_SHA1)
    whole = issued.certificate.public_bytes(Encoding.DER).replace(_RSA_SHA256, _RSA_SHA1)
    before, after = issued.certificate.signature, issuer.sign(tbs, padding.PKCS1v15(), hashes.SHA1())
    return Issued(x509.load_der_x509_certificate(whole.replace(before, after)), issued.key)


def authenticator(role: Role, own: Issued, *authorities: Accepted) -> CertificateAuthenticator:
    """Return what a node authenticates with."""
    return CertificateAuthenticator(CertificateFiles(role, own.certificate, own.key, authorities))


class Careless(CertificateAuthenticator):
    """What somebody has who checks nothing, and shows anything, with any other certificates beside it."""

    def __init__(self, role: Role, own: Issued, *chain: Issued) -> None:
        self._chain = chain
        super().__init__(CertificateFiles(role, own.certificate, own.key, ()))

    def _configure(self) -> None:
        self._context.set_min_proto_version(SSL.TLS1_3_VERSION)
        self._context.set_cipher_list(b"DEFAULT@SECLEVEL=0")
        self._context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        self._context.use_certificate(self.files.certificate)
        self._context.use_privatekey(self.files.private_key)
        for other in self._chain:
            self._context.add_extra_chain_cert(other.certificate)

    def judge(
        self, peer: PeerIdentity | None, time_of_day: float, chain: Sequence[x509.Certificate]
    ) -> Judgement:
        """Take anybody for whoever was expected."""
        return Judgement(peer or PeerIdentity(Mechanism.TLS, "anybody"), Accepted("any", chain[-1]), None)

    def objection(self, authentication: Authentication, inner_addresses: Sequence[IPAddress]) -> str:
        """Never object."""
        return ""
