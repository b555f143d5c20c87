"""
The certificates, keys and revocation lists that a policy names, read from disk.

    policy, its directory -> `load` -> CertificateAuthenticator, or the fault of a file
                          -> `inspect` -> that, and every fault at once

A node whose policy names no certificate never imports this module.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from rvpn.constants import Role
from rvpn.errors import LocalError
from rvpn.files import keyfile
from rvpn.files.regular import open_regular
from rvpn.keyexchange import certificates, revocation
from rvpn.keyexchange.authenticator import CertificateAuthenticator, CertificateFiles
from rvpn.keyexchange.certificates import UNREADABLE, Authority
from rvpn.policy import model
from rvpn.policy.model import Policy
from rvpn.policy.values import InlinePEM

#: Bytes of a file; a revocation list of a hundred thousand certificates is shorter.
LONGEST_FILE = 1 << 23

#: A file, or what the policy holds in its place.
Source = Path | InlinePEM
T = TypeVar("T")


class FileFault(LocalError):
    """A file is not what it should be; `statement` is the one of the policy that names it."""

    def __init__(self, statement: str, text: str) -> None:
        super().__init__(text)
        self.statement = statement


class _Faults(list[FileFault]):
    """The faults that were found; a file that has one is None, and those after it are read all the same."""

    def collect(self, read: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return read(*arguments)
        except FileFault as fault:
            self.append(fault)
            return None


def load(policy: Policy, place: Path, role: Role) -> CertificateAuthenticator:
    """
    Return what the policy in directory `place` names.

    Raises `FileFault` with the file, what was found there and what was expected.
    """
    loaded, faults = inspect(policy, place, role)
    if loaded is None:
        raise faults[0]
    return loaded


def inspect(
    policy: Policy, place: Path, role: Role
) -> tuple[CertificateAuthenticator | None, list[FileFault]]:
    """Return what the policy in directory `place` names, or None and all that is wrong with its files."""
    assert policy.certificate is not None
    assert policy.certificate_key is not None
    faults, key = _Faults(), _at(place, policy.certificate_key)
    certificate = faults.collect(_own, _at(place, policy.certificate), role)
    authorities = _authorities(policy, place, faults)
    private_key = faults.collect(_private_key, key)
    if certificate is None or faults:
        return None, faults
    files = CertificateFiles(role, certificate, private_key, authorities)
    return faults.collect(_authenticator, key, files), faults


def _own(path: Source, role: Role) -> x509.Certificate:
    certificate = _certificate("Certificate", path)
    with _about("Certificate", path):
        certificates.check_own(certificate, role)
    return certificate


def _authenticator(key: Source, files: CertificateFiles) -> CertificateAuthenticator:
    with _about("CertificateKey", key):
        return CertificateAuthenticator(files)


def _authorities(policy: Policy, place: Path, faults: _Faults) -> tuple[Authority, ...]:
    """Return the authorities of the policy that are none of the faults, each with what it revoked."""
    found: list[Authority] = []
    for stated in policy.authorities:
        authority = faults.collect(_authority, stated, place, found)
        found += [authority] if authority is not None else []
    # A list may be that of an authority which could not be read.
    signers = found if len(found) == len(policy.authorities) else None
    read_lists = [faults.collect(_lists, _at(place, name), signers) or [] for name in policy.revoked]
    lists = [crl for of_file in read_lists for crl in of_file]
    return tuple(revocation.with_lists(authority, lists) for authority in found)


def _authority(stated: model.Authority, place: Path, others: Sequence[Authority]) -> Authority:
    label, path = f"Authority{stated.number}", _at(place, stated.file)
    certificate = _certificate(label, path)
    with _about(label, path):
        certificates.check_authority(certificate)
        authority = Authority(label, certificate, stated.networks)
        certificates.check_apart(authority, others)
    return authority


def _at(place: Path, name: str) -> Source:
    """Return where to find what a policy in directory `place` names."""
    return name if isinstance(name, InlinePEM) else place / name


def _certificate(statement: str, path: Source) -> x509.Certificate:
    with _about(statement, path, "a certificate in PEM"):
        return x509.load_pem_x509_certificate(_read(path))


def _lists(path: Source, authorities: list[Authority] | None) -> list[x509.CertificateRevocationList]:
    """
    Return every list in a file: one that was overlooked would revoke nothing.

    Whether one of `authorities` signed them is not asked if these are not known.
    """
    with _about("Revoked", path, "a revocation list in PEM"):
        first, *blocks = re.split(rb"^(?=-----BEGIN X509 CRL-----)", _read(path), flags=re.MULTILINE)
        lists = [x509.load_pem_x509_crl(block) for block in blocks or [first]]
        if authorities is not None:
            for crl in lists:
                revocation.check_list(crl, authorities)
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
        with open_regular(path) as file:
            content = file.read(LONGEST_FILE + 1)
    except OSError as error:
        raise LocalError(f"cannot read this file: {error.strerror}") from None
    if not content:
        raise LocalError("found an empty file")
    if len(content) > LONGEST_FILE:
        raise LocalError(f"found more than {LONGEST_FILE} bytes")
    return content
