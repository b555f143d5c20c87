"""
What certificates must be for this VPN, beyond what OpenSSL checks of a chain (RFC 5280).

    what the policy names -> `check_own`, `check_authority` -> `Authority`; rvpn.keyexchange.revocation
    a peer's certificate, its chain verified -> `check_gateway`, `check_client` -> who that is
                                             -> Refused: who, what was found, what was expected

The roles of the VPN are told by the extended key usage, whoever began the exchange: a gateway has serverAuth
and not clientAuth, a client the reverse. A gateway is known by the addresses and DNS names in its
certificate, a client by its common name and that of its authority; its addresses are those inside the tunnel.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from math import inf
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address

from rvpn.constants import Mechanism, Role
from rvpn.errors import ContextFailed, DropReason, LocalError
from rvpn.interfaces import IPAddress, IPNetwork, PeerIdentity

#: Bits of the shortest RSA key that is accepted, about as strong as the other kinds (NIST SP 800-57).
RSA_BITS = 3072
#: Characters of a name (RFC 5280 appendix A.1, ub-common-name), and addresses of a client.
MAX_NAME, MAX_ADDRESSES = 64, 8

KEYS = f"Ed25519, P-256, P-384 or RSA of at least {RSA_BITS} bits"
DIGESTS = "SHA-256, SHA-384 or SHA-512"
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_DIGESTS = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
#: The extended key usage that makes a certificate a client's or a gateway's.
USAGES = {Role.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH, Role.GATEWAY: ExtendedKeyUsageOID.SERVER_AUTH}
_USAGE_NAMES = {
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "anyExtendedKeyUsage",
}
#: What cryptography raises on certificates that OpenSSL was content with.
UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.InvalidVersion,
)

T = TypeVar("T", bound=x509.ExtensionType)


class Refused(ContextFailed):
    """A peer's certificate is not acceptable; the text is for our log alone."""

    def __init__(self, who: str, found: str, expected: str) -> None:
        super().__init__(DropReason.AUTHENTICATION_FAILED, f"{who}: found {found}, expected {expected}")


@dataclass(frozen=True, slots=True)
class Authority:
    """
    Whose certificates this node accepts.

    `networks` hold the inner addresses that clients of this authority may have, at a gateway; `revoked` the
    numbers of certificates that are good no more. The list that says so has the number `list_number`, was
    made at `list_made_at` and was to be replaced at `list_ends_at`, in seconds since 1970; it is believed all
    the same (docs/decisions/0103).
    """

    label: str
    certificate: x509.Certificate
    networks: tuple[IPNetwork, ...] = ()
    revoked: frozenset[int] = frozenset()
    list_ends_at: float = inf
    list_number: int | None = None
    list_made_at: float | None = None

    @property
    def name(self) -> str:
        """Its common name."""
        return common_name(self.certificate.subject)

    @property
    def fingerprint(self) -> bytes:
        """What tells it from all others."""
        return fingerprint(self.certificate)

    def objection(self, serial: int, addresses: Iterable[IPAddress]) -> tuple[str, str] | None:
        """Return what is found, and what was expected, if a certificate with this number is good no more."""
        if serial in self.revoked:
            return "it is revoked", "one that is not"
        for address in addresses:
            if not any(address in network for network in self.networks):
                granted = " ".join(map(str, self.networks)) or "none: the policy grants it no range"
                return f"inner address {address}", f"those of {self.label} ({granted})"
        return None


@dataclass(frozen=True, slots=True)
class Judgement:
    """Who a peer is: its identity, its authority, and if it is a client its inner addresses."""

    identity: PeerIdentity
    authority: Authority
    inner_addresses: tuple[IPAddress, ...] | None


# --- Reading --------------------------------------------------------------------------------------------


def fingerprint(certificate: x509.Certificate) -> bytes:
    """Return what tells a certificate from all others."""
    return certificate.fingerprint(hashes.SHA256())


def title(certificate: x509.Certificate) -> str:
    """Name a certificate in a message, whatever it is."""
    try:
        return f"certificate {printable(common_name(certificate.subject))}"
    except UNREADABLE:
        return "a certificate that cannot be read"


def printable(text: str) -> str:
    """Return somebody else's text for a message: in quotes, of bounded length, in ASCII."""
    return ascii(text[:MAX_NAME])


def common_name(name: x509.Name) -> str:
    """Return the common name, empty if there is none or more than one."""
    found = [str(attribute.value) for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return found[0] if len(found) == 1 else ""


def day(moment: datetime) -> str:
    """Write a time for a message."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def expiry(*certificates: x509.Certificate) -> float:
    """Return when the first of these expires, in seconds since 1970."""
    return min(certificate.not_valid_after_utc.timestamp() for certificate in certificates)


def _extension(certificate: x509.Certificate, kind: type[T]) -> T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def addresses(certificate: x509.Certificate) -> tuple[IPAddress, ...]:
    """Return the addresses among the certificate's alternative names."""
    names = _extension(certificate, x509.SubjectAlternativeName)
    found = names.get_values_for_type(x509.IPAddress) if names is not None else []
    return tuple(dict.fromkeys(a for a in found if isinstance(a, IPv4Address | IPv6Address)))


def _dns_names(certificate: x509.Certificate) -> list[str]:
    names = _extension(certificate, x509.SubjectAlternativeName)
    return names.get_values_for_type(x509.DNSName) if names is not None else []


def _names(certificate: x509.Certificate) -> str:
    """List the certificate's alternative names for a message."""
    dns = (f"DNS name {printable(name)}" for name in _dns_names(certificate))
    return ", ".join([*map(str, addresses(certificate)), *dns][:MAX_ADDRESSES]) or "none"


# --- What all certificates must be ----------------------------------------------------------------------


def key_fault(certificate: x509.Certificate) -> str:
    """Return what kind of key it is, if not one of `KEYS`."""
    key = certificate.public_key()
    if isinstance(key, ed25519.Ed25519PublicKey):
        return ""
    if isinstance(key, rsa.RSAPublicKey):
        return "" if key.key_size >= RSA_BITS else f"an RSA key of {key.key_size} bits"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "" if isinstance(key.curve, _CURVES) else f"a key on the curve {key.curve.name}"
    return f"a key of the kind {type(key).__name__}"


def digest_fault(certificate: x509.Certificate) -> str:
    """Return how it is signed, if not with one of `DIGESTS`, or Ed25519, which has its own."""
    try:
        digest = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return f"a signature of the kind {certificate.signature_algorithm_oid.dotted_string}"
    if digest is None or isinstance(digest, _DIGESTS):
        return ""
    return f"a signature with {digest.name.upper()}"


def check_validity(certificate: x509.Certificate, time_of_day: float) -> None:
    """Raise `Refused` unless this is within its time, in seconds since 1970."""
    start, end, found = certificate.not_valid_before_utc, certificate.not_valid_after_utc, ""
    if time_of_day < start.timestamp():
        found = f"that it is not valid before {day(start)}"
    elif time_of_day > end.timestamp():
        found = f"that it expired on {day(end)}"
    if found:
        raise Refused(title(certificate), found, "one that is valid now")


def _check(certificate: x509.Certificate, role: Role) -> None:
    """Raise `Refused` unless this is a certificate of that role, with a key and a signature of ours."""
    who = title(certificate)
    if fault := key_fault(certificate):
        raise Refused(who, fault, KEYS)
    if fault := digest_fault(certificate):
        raise Refused(who, fault, DIGESTS)
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise Refused(who, "that of an authority", f"that of a {role.value}")
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        raise Refused(who, "a key usage without digitalSignature", "one with it")
    _check_role(certificate, role)
    if role is Role.GATEWAY:
        _refuse_wildcards(certificate)


def _check_role(certificate: x509.Certificate, role: Role) -> None:
    usages = set(_extension(certificate, x509.ExtendedKeyUsage) or ())
    found = sorted(_USAGE_NAMES[usage] for usage in usages & _USAGE_NAMES.keys())
    expected = _USAGE_NAMES[USAGES[role]]
    if found != [expected]:
        raise Refused(
            title(certificate),
            f"extended key usage {' and '.join(found) or 'of neither kind'}",
            f"{expected} alone, that of a {role.value}",
        )


def check_gateway(certificate: x509.Certificate, expected: str) -> None:
    """Raise `Refused` unless this is the gateway with the address or DNS name `expected` (RFC 9525)."""
    _check(certificate, Role.GATEWAY)
    try:
        if is_address(expected):
            verify_certificate_ip_address(certificate, expected)
        else:
            verify_certificate_hostname(certificate, expected)
    except VerificationError:
        found = f"the names {_names(certificate)}"
    except CertificateError as error:  # for want of names, or because of one of a strange kind
        found = f"the names {_names(certificate)} ({printable(str(error))})"
    else:
        return
    if is_address(expected) and expected in _dns_names(certificate):
        raise Refused(title(certificate), f"the address {expected} as a DNS name", "it as an IP address")
    raise Refused(title(certificate), found, f"{expected} among them")


def _refuse_wildcards(certificate: x509.Certificate) -> None:
    """Raise `Refused` if a DNS name stands for many: whoever has the certificate would be all of these."""
    for name in _dns_names(certificate):
        if "*" in name:
            raise Refused(title(certificate), f"the wildcard {printable(name)}", "names of one gateway")


def is_address(name: str) -> bool:
    """Tell an address from a DNS name."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def check_client(
    certificate: x509.Certificate, authority: Authority
) -> tuple[PeerIdentity, tuple[IPAddress, ...]]:
    """Return who the client with this certificate is, and its inner addresses. Raises `Refused`."""
    _check(certificate, Role.CLIENT)
    who, name = title(certificate), common_name(certificate.subject)
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise Refused(who, "no usable common name", f"one of at most {MAX_NAME} printable characters")
    inner = addresses(certificate)
    if not 0 < len(inner) <= MAX_ADDRESSES:
        raise Refused(who, f"{len(inner)} IP addresses", f"its inner addresses, 1 to {MAX_ADDRESSES}")
    return PeerIdentity(Mechanism.TLS, f"{name} ({authority.name})"), inner


def check_authority(certificate: x509.Certificate) -> None:
    """Raise `LocalError` with what was found and expected unless this one may issue certificates."""
    constraints = _extension(certificate, x509.BasicConstraints)
    usage = _extension(certificate, x509.KeyUsage)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        raise LocalError("found a certificate that may not issue others, expected that of an authority")
    _check_strength(certificate)
    _check_extensions(certificate)
    if not common_name(certificate.subject).isprintable() or not common_name(certificate.subject):
        raise LocalError("found an authority without a common name, expected one: it is part of names here")


def _check_extensions(certificate: x509.Certificate) -> None:
    """
    Raise `LocalError` if an authority's certificate has what OpenSSL would refuse in some exchanges.

    It knows the roles of TLS alone: who is which there depends on who begins, so both have to be allowed.
    """
    for extension in certificate.extensions:
        if extension.critical and isinstance(extension.value, x509.UnrecognizedExtension):
            oid = extension.oid.dotted_string
            raise LocalError(f"found the critical extension {oid}, expected none that is unknown here")
    usages = _extension(certificate, x509.ExtendedKeyUsage)
    lacking = [_USAGE_NAMES[u] for u in USAGES.values() if usages is not None and u not in usages]
    if lacking:
        raise LocalError(
            f"found an extended key usage without {' and '.join(lacking)}, expected none, or one with both"
        )


def check_apart(authority: Authority, others: Iterable[Authority]) -> None:
    """
    Raise `LocalError` if another one has the same name.

    A client is known by its own name and that of its authority: those of the one would be those of the other.
    """
    for other in others:
        if other.name != authority.name:
            continue
        if other.certificate.public_key() == authority.certificate.public_key():
            raise LocalError(f"found the authority of {other.label} again, expected each one once")
        name = printable(authority.name)
        raise LocalError(f"found an authority with the name of {other.label}, {name}, expected another name")


def check_own(certificate: x509.Certificate, role: Role) -> None:
    """Raise `LocalError` with what was found and expected unless a node of `role` can use this one."""
    _check_strength(certificate)
    try:
        _check(certificate, role)
    except Refused as refused:
        raise LocalError(refused.detail) from None


def _check_strength(certificate: x509.Certificate) -> None:
    if fault := key_fault(certificate):
        raise LocalError(f"found {fault}, expected {KEYS}")
    if fault := digest_fault(certificate):
        raise LocalError(f"found {fault}, expected {DIGESTS}")
