"""
The certificates, keys and revocation lists that a policy names, read from disk.

    policy, its directory -> `load` -> CertificateAuthenticator, or the fault of a file

A node whose policy names no certificate never imports this module.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from rvpn import keyfile
from rvpn.constants import Role
from rvpn.errors import LocalError
from rvpn.keyexchange import certificates
from rvpn.keyexchange.authenticator import CertificateAuthenticator, CertificateFiles
from rvpn.keyexchange.certificates import UNREADABLE, Authority
from rvpn.policy.model import Policy
from rvpn.policy.values import InlinePEM

#: Bytes of a file; a revocation list of a hundred thousand certificates is shorter.
LONGEST_FILE = 1 << 23

#: A file, or what the policy holds in its place.
Source = Path | InlinePEM


class FileFault(LocalError):
    """A file is not what it should be; `statement` is the one of the policy that names it."""

    def __init__(self, statement: str, text: str) -> None:
        super().__init__(text)
        self.statement = statement


def load(policy: Policy, place: Path, role: Role) -> CertificateAuthenticator:
    """
    Return what the policy in directory `place` names.

    Raises `FileFault` with the file, what was found there and what was expected.
    """
    assert policy.certificate is not None
    assert policy.certificate_key is not None
    own, key = _at(place, policy.certificate), _at(place, policy.certificate_key)
    certificate = _certificate("Certificate", own)
    with _about("Certificate", own):
        certificates.check_own(certificate, role)
    authorities = tuple(_authorities(policy, place))
    private_key = _private_key(key)
    with _about("CertificateKey", key):
        return CertificateAuthenticator(CertificateFiles(role, certificate, private_key, authorities))


def _authorities(policy: Policy, place: Path) -> Iterator[Authority]:
    """Yield the authorities of the policy, each with what it revoked."""
    found = []
    for stated in policy.authorities:
        label, path = f"Authority{stated.number}", _at(place, stated.file)
        certificate = _certificate(label, path)
        with _about(label, path):
            certificates.check_authority(certificate)
        found.append(Authority(label, certificate, stated.networks))
    lists = [crl for name in policy.revoked for crl in _lists(_at(place, name), found)]
    yield from (certificates.with_lists(authority, lists) for authority in found)


def _at(place: Path, name: str) -> Source:
    """Return where to find what a policy in directory `place` names."""
    return name if isinstance(name, InlinePEM) else place / name


def _certificate(statement: str, path: Source) -> x509.Certificate:
    with _about(statement, path, "a certificate in PEM"):
        return x509.load_pem_x509_certificate(_read(path))


def _lists(path: Source, authorities: list[Authority]) -> list[x509.CertificateRevocationList]:
    """Return every list in a file: one that was overlooked would revoke nothing."""
    with _about("Revoked", path, "a revocation list in PEM"):
        first, *blocks = re.split(rb"^(?=-----BEGIN X509 CRL-----)", _read(path), flags=re.MULTILINE)
        lists = [x509.load_pem_x509_crl(block) for block in blocks or [first]]
        for crl in lists:
            certificates.check_list(crl, authorities)
        return lists


def _private_key(path: Source) -> Any:
    with _about("CertificateKey", path, "a private key in PEM"):
        maker = "rvpn pki, which makes it with its certificate"
        pem = _read(path) if isinstance(path, InlinePEM) else keyfile.read(str(path), LONGEST_FILE, maker)
        try:
            return load_pem_private_key(pem, None)
        except TypeError:
            raise LocalError(
                "found an encrypted key, expected one that a service can read by itself"
            ) from None


@contextmanager
def _about(statement: str, path: Source, expected: str = "another one") -> Iterator[None]:
    """Name statement and file in what goes wrong."""
    where = f"the PEM below {statement}" if isinstance(path, InlinePEM) else str(path)
    try:
        yield
    except LocalError as error:
        text = str(error).removeprefix(f"{where}: ")
        raise FileFault(statement, f"{where}: {text}") from None
    except UNREADABLE:
        raise FileFault(statement, f"{where}: found something else, expected {expected}") from None


def _read(path: Source) -> bytes:
    """Return what is in a file. Raises `LocalError` if it cannot be read, or is no ordinary file."""
    if isinstance(path, InlinePEM):
        return path.encode()
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise LocalError("found something that is not a regular file")
            content = file.read(LONGEST_FILE + 1)
    except OSError as error:
        raise LocalError(f"cannot read this file: {error.strerror}") from None
    if len(content) > LONGEST_FILE:
        raise LocalError(f"found more than {LONGEST_FILE} bytes")
    return content
