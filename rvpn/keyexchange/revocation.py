"""
What an authority has revoked: its revocation lists (RFC 5280 section 5).

    lists that the policy names -> `check_list`: whole, and signed by an authority of the policy
        -> `with_lists` -> the authority with the numbers that they revoke
"""

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from rvpn.errors import LocalError
from rvpn.keyexchange.certificates import Authority, common_name, printable


def with_lists(authority: Authority, lists: Sequence[x509.CertificateRevocationList]) -> Authority:
    """Return the authority with what it revoked: the numbers in the lists with its name and signature."""
    own = [crl for crl in lists if is_signed_by(crl, authority.certificate)]
    ends = (crl.next_update_utc.timestamp() for crl in own if crl.next_update_utc is not None)
    return replace(
        authority,
        revoked=frozenset(entry.serial_number for crl in own for entry in crl),
        list_ends_at=min(ends, default=inf),
        list_number=max((n for crl in own if (n := _list_number(crl)) is not None), default=None),
        list_made_at=max((crl.last_update_utc.timestamp() for crl in own), default=None),
    )


def _list_number(crl: x509.CertificateRevocationList) -> int | None:
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return None


def is_signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """Tell whether a revocation list is that of `issuer`."""
    if crl.issuer != issuer.subject:
        return False
    key = issuer.public_key()
    assert isinstance(key, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    try:
        return crl.is_signature_valid(key)
    except InvalidSignature:
        return False


def check_list(crl: x509.CertificateRevocationList, authorities: Sequence[Authority]) -> None:
    """Raise `LocalError` unless this is a whole list of one of the authorities (RFC 5280 section 5)."""
    for extension in crl.extensions:
        if isinstance(extension.value, x509.DeltaCRLIndicator | x509.IssuingDistributionPoint):
            raise LocalError("found a revocation list that is but a part of one, expected a whole one")
    if not any(is_signed_by(crl, authority.certificate) for authority in authorities):
        known = ", ".join(printable(authority.name) for authority in authorities) or "none"
        if any(crl.issuer == authority.certificate.subject for authority in authorities):
            name = printable(common_name(crl.issuer))
            raise LocalError(
                f"found a revocation list with the name of authority {name} that another key signed, "
                "expected one that its own key did"
            )
        raise LocalError(
            f"found a revocation list that {printable(common_name(crl.issuer))} is said to have signed, "
            f"expected one signed by an authority of the policy: {known}"
        )
