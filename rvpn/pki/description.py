"""
What is in a certificate, an index or a revocation list, whoever made it: as values for JSON, and as text for
people.
"""

from collections.abc import Container, Iterable
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from rvpn.constants import Role
from rvpn.errors import LocalError
from rvpn.keyexchange.certificates import UNREADABLE, USAGES, check_authority, check_own
from rvpn.pki.index import Entry, serial_text

Description = dict[str, Any]

#: A certificate that expires within this time is announced.
SOON = timedelta(days=35)


def of_certificate(certificate: x509.Certificate, now: datetime) -> Description:
    """
    Describe a certificate; `fault` is why it is of no use to rvpn, None if it is of use.

    Raises `LocalError` if what is in it cannot be read.
    """
    try:
        role, fault = _fault(certificate)
        return {
            "role": role,
            "fault": fault,
            "name": _name(certificate),
            "alternatives": _alternatives(certificate),
            "key": _key(certificate),
            "serial": serial_text(certificate.serial_number),
            "issuer": certificate.issuer.rfc4514_string(),
            "issued": certificate.not_valid_before_utc.isoformat(),
            "expires": certificate.not_valid_after_utc.isoformat(),
            "state": _state(certificate.not_valid_before_utc, certificate.not_valid_after_utc, now),
            "sha256": certificate.fingerprint(SHA256()).hex(),
        }
    except UNREADABLE as error:
        raise LocalError(f"cannot read this certificate: {error}") from None


def of_entry(entry: Entry, now: datetime, unlisted: Container[int] = ()) -> Description:
    """Describe a line of the index; `unlisted` are numbers that the revocation list should have."""
    revoked = entry.revoked
    state = f"revoked {revoked:%Y-%m-%d}" if revoked else _state(entry.issued, entry.expires, now)
    return {
        "role": entry.role.value,
        "name": entry.name,
        "alternatives": list(entry.alternatives),
        "serial": serial_text(entry.serial),
        "issued": entry.issued.isoformat(),
        "expires": entry.expires.isoformat(),
        "revoked": revoked.isoformat() if revoked else None,
        "state": f"{state}, not in the list" if entry.serial in unlisted else state,
    }


def of_revocations(revocations: x509.CertificateRevocationList) -> Description:
    """Describe a revocation list; `number` is None if it has none."""
    end = revocations.next_update_utc
    numbers = [found.crl_number for found in _found(revocations.extensions, x509.CRLNumber)]
    return {
        "number": numbers[0] if numbers else None,
        "revoked": len(revocations),
        "issued": revocations.last_update_utc.isoformat(),
        "next": end.isoformat() if end else None,
    }


def lines(description: Description) -> Iterable[str]:
    """Return what a description of one certificate says, a line for each field."""
    for field, value in description.items():
        if value is not None:
            yield f"{field + ':':14}{' '.join(value) or 'none' if isinstance(value, list) else value}"


def _fault(certificate: x509.Certificate) -> tuple[str, str | None]:
    """Return for what a certificate is meant, and why rvpn would not take it for that, if it would not."""
    usages = {usage for found in _found(certificate.extensions, x509.ExtendedKeyUsage) for usage in found}
    try:
        if any(constraints.ca for constraints in _found(certificate.extensions, x509.BasicConstraints)):
            role = "authority"
            check_authority(certificate)
        elif USAGES[Role.CLIENT] in usages and USAGES[Role.GATEWAY] not in usages:
            role = Role.CLIENT.value
            check_own(certificate, Role.CLIENT)
        else:
            role = Role.GATEWAY.value
            check_own(certificate, Role.GATEWAY)
    except LocalError as error:
        return role, str(error)
    return role, None


def _name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


def _alternatives(certificate: x509.Certificate) -> list[str]:
    return [
        str(name.value)
        for names in _found(certificate.extensions, x509.SubjectAlternativeName)
        for name in names
        if isinstance(name, x509.IPAddress | x509.DNSName)
    ]


def _key(certificate: x509.Certificate) -> str:
    try:
        key = certificate.public_key()
    except UnsupportedAlgorithm:
        return "unknown"
    if isinstance(key, Ed25519PublicKey):
        return "Ed25519"
    if isinstance(key, EllipticCurvePublicKey):
        return "P-256" if key.curve.name == "secp256r1" else key.curve.name
    return f"RSA {key.key_size}" if isinstance(key, RSAPublicKey) else "unknown"


def _state(start: datetime, end: datetime, now: datetime) -> str:
    if now < start:
        return "not yet valid"
    if now > end:
        return "expired"
    if end - now >= SOON:
        return "valid"
    days = (end - now).days
    return "expires within a day" if days == 0 else f"expires in {days} day{'' if days == 1 else 's'}"


def _found(extensions: x509.Extensions, kind: type) -> list[Any]:
    """Return the extension of this kind, if there is one."""
    return [extension.value for extension in extensions if isinstance(extension.value, kind)]
