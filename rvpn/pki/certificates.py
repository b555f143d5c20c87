"""
X.509 certificates and revocation lists as rvpn wants them (RFC 5280).

Product role goes by extended key usage: a gateway's certificate has serverAuth and a client's clientAuth,
whichever end begins, and none has both. The alternative names of a gateway are those that clients reach it
by, those of a client its inner addresses. Times and serial numbers come in as arguments.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from rvpn.constants import Role
from rvpn.errors import LocalError
from rvpn.keyexchange.certificates import USAGES, is_address

PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey

#: A machine whose clock is late by no more takes a new certificate or revocation list at once.
BACKDATED = timedelta(hours=1)


class Issuer(NamedTuple):
    """Who signs: an authority's certificate and its key."""

    certificate: x509.Certificate
    key: PrivateKey


class Validity(NamedTuple):
    """From when until when a certificate holds, in UTC and whole seconds."""

    start: datetime
    end: datetime


def authority_certificate(name: str, key: PrivateKey, serial: int, validity: Validity) -> x509.Certificate:
    """Return the certificate of an authority for gateways and clients, and for no further authority."""
    subject = _subject(name)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        _builder(subject, key, serial, validity)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(key, _digest(key))
    )


def node_certificate(
    issuer: Issuer,
    role: Role,
    name: str,
    alternatives: Iterable[str],
    key: PrivateKey,
    serial: int,
    validity: Validity,
) -> x509.Certificate:
    """Return a gateway's or client's certificate; `alternatives` are its names as `names` checks them."""
    general_names = [
        x509.IPAddress(ip_address(text)) if is_address(text) else x509.DNSName(text) for text in alternatives
    ]
    return (
        _builder(_subject(name), key, serial, validity)
        .issuer_name(issuer.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([USAGES[role]]), critical=False)
        .add_extension(x509.SubjectAlternativeName(general_names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_authority_identifier(issuer.certificate), critical=False)
        .sign(issuer.key, _digest(issuer.key))
    )


def revocation_list(
    issuer: Issuer, revoked: Iterable[tuple[int, datetime]], number: int, now: datetime
) -> x509.CertificateRevocationList:
    """
    Return the list of `revoked` serial numbers, which holds as long as the authority does.

    `number` has to grow from list to list (RFC 5280 section 5.2.3).
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(max(now - BACKDATED, issuer.certificate.not_valid_before_utc))
        .next_update(issuer.certificate.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(_authority_identifier(issuer.certificate), critical=False)
    )
    for serial, when in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, _digest(issuer.key))


def load(pem: bytes, path: Path) -> x509.Certificate:
    """Return the first certificate in a file's content. Raises `LocalError` if there is none."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise LocalError(f"{path}: found no certificate, expected one in PEM") from None


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(subject: x509.Name, key: PrivateKey, serial: int, validity: Validity) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(validity.start)
        .not_valid_after(validity.end)
    )


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_identifier(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _digest(key: PrivateKey) -> SHA256 | None:
    """Ed25519 has its own digest (RFC 8410)."""
    return None if isinstance(key, Ed25519PrivateKey) else SHA256()
