"""Certificates for the laboratory: an authority that lives as long as one call, and what it issues."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from rvpn.constants import Role
from rvpn.files import newfile
from rvpn.pki import certificates, keys
from rvpn.pki.certificates import BACKDATED, Issuer, Validity
from rvpn.pki.keys import KeyKind

#: The file that holds the authority's certificate.
AUTHORITY = "ca.pem"
_LIFETIME = timedelta(days=1)


def issue(
    directory: Path,
    gateways: Mapping[str, Iterable[str]],
    clients: Mapping[str, Iterable[str]],
    authority: str = "rvpn lab",
) -> None:
    """
    Write NAME.pem and NAME.key for each gateway and its outer, each client and its inner addresses.

    Raises `LocalError` if there are such files already.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    validity, serials = Validity(now - BACKDATED, now + _LIFETIME), count(1)
    key = keys.generate(KeyKind.ED25519)
    issuer = Issuer(certificates.authority_certificate(authority, key, next(serials), validity), key)
    files = {directory / AUTHORITY: issuer.certificate.public_bytes(Encoding.PEM)}
    for role, nodes in (Role.GATEWAY, gateways), (Role.CLIENT, clients):
        for name, addresses in nodes.items():
            own, serial = keys.generate(KeyKind.ED25519), next(serials)
            certificate = certificates.node_certificate(issuer, role, name, addresses, own, serial, validity)
            files[directory / f"{name}.pem"] = certificate.public_bytes(Encoding.PEM)
            files[directory / f"{name}.key"] = keys.plain_pem(own)
    newfile.write(files)
