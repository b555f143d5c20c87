"""
An authority on disk: one directory, for its owner alone, that one process uses at a time.

    ca.pem      its certificate, which every node needs
    ca.key      its secret key, encrypted with a passphrase
    crl.pem     what it revoked, for every node
    index.csv   what it issued (rvpn.pki.index)

Keys of the nodes are never kept here. The index is written before a certificate is handed out, so that
whatever exists can be revoked by its name.
"""

import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from rvpn.constants import AUTHORITY_LIFETIME, NODE_LIFETIME, Role
from rvpn.errors import LocalError
from rvpn.files.regular import open_to_others
from rvpn.files.state import StateDirectory
from rvpn.keyexchange.certificates import MAX_ADDRESSES, UNREADABLE, is_address
from rvpn.keyexchange.revocation import is_signed_by
from rvpn.pki import certificates, keys
from rvpn.pki.certificates import BACKDATED, Issuer, Validity
from rvpn.pki.index import Entry, read, write
from rvpn.pki.keys import KeyKind
from rvpn.pki.names import checked_alternatives, checked_name

CERTIFICATE, KEY, REVOCATIONS, INDEX = "ca.pem", "ca.key", "crl.pem", "index.csv"


@dataclass(frozen=True, slots=True)
class Request:
    """
    What a certificate is wanted for, as the command line says it.

    `renew` allows that there is one for this name; without `alternatives` its own are taken.
    """

    role: Role
    name: str
    alternatives: tuple[str, ...]
    days: int = NODE_LIFETIME
    kind: KeyKind = KeyKind.ED25519
    renew: bool = False


@dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate and its secret key, as PEM."""

    entry: Entry
    certificate: bytes
    key: bytes = field(repr=False)


def refuse_existing(directory: Path) -> None:
    """Raise `LocalError` if there is more in `directory` than nothing."""
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if directory.exists() or directory.is_symlink():
        raise LocalError(f"{directory}: exists already and is left as it is; --ca names another directory")


def create(
    directory: Path,
    name: str,
    passphrase: bytes,
    now: datetime,
    days: int = AUTHORITY_LIFETIME,
    kind: KeyKind = KeyKind.ED25519,
) -> None:
    """
    Make an authority in a new directory: all of it, or nothing.

    Raises `LocalError` if there is something in that place already.
    """
    key = keys.generate(kind)
    validity = Validity(now - BACKDATED, now + timedelta(days=days))
    certificate = certificates.authority_certificate(
        checked_name(name), key, x509.random_serial_number(), validity
    )
    with _new_directory(directory) as place:
        place.write(KEY, keys.encrypted_pem(key, passphrase))
        place.write(CERTIFICATE, certificate.public_bytes(Encoding.PEM))
        place.write(INDEX, write([]))
        place.write(REVOCATIONS, _revocations(Issuer(certificate, key), [], 0, now))


class Authority:
    """
    The authority in `directory`, held until `close`.

    Raises `LocalError` if there is none, another process holds it, or others could read it.
    """

    def __init__(self, directory: Path) -> None:
        if not (directory / CERTIFICATE).exists():
            raise LocalError(
                f"{directory}: found no authority here; make one with: rvpn pki init --ca {directory}"
            )
        self.directory = directory
        self._place = StateDirectory(directory, "directory of the authority")
        try:
            self._check_rights()
            self.certificate = certificates.load(self._read(CERTIFICATE), directory / CERTIFICATE)
            self.entries = read(self._read(INDEX), str(directory / INDEX))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Authority":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others use the directory. May be called again."""
        self._place.close()

    @property
    def certificate_pem(self) -> bytes:
        """The authority's certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def revocations(self) -> x509.CertificateRevocationList:
        """The last revocation list. Raises `LocalError` if there is none, or another one in its place."""
        path = self.directory / REVOCATIONS
        try:
            revocations = x509.load_pem_x509_crl(self._read(REVOCATIONS))
            if is_signed_by(revocations, self.certificate):
                return revocations
        except UNREADABLE:
            pass
        raise LocalError(
            f"{path}: found something that is not this authority's revocation list; "
            "rvpn pki revoke without a name writes it anew"
        )

    @property
    def unlisted(self) -> set[int]:
        """
        The serial numbers of what is revoked and not in the revocation list.

        That is what a crash between the two leaves behind, or a lost list; whoever revokes writes both again.
        """
        revoked = {entry.serial for entry in self.entries if entry.revoked}
        with suppress(LocalError):
            return revoked - {entry.serial_number for entry in self.revocations}
        return revoked

    def check(self, request: Request, now: datetime) -> Request:
        """
        Return the request with everything filled in.

        Raises `LocalError` if it is none that this authority can grant, before anybody is asked for a
        passphrase.
        """
        name = checked_name(request.name)
        before = [entry for entry in self.entries if entry.name == name]
        alternatives = checked_alternatives(request.role, request.alternatives)
        if request.renew:
            last = _renewed(before, name)
            alternatives = alternatives or last.alternatives
        elif any(entry.is_live(now) for entry in before):
            raise LocalError(
                f"{name} has a certificate that is valid until {before[-1].expires:%Y-%m-%d}: "
                f"--renew makes another, rvpn pki revoke {name} ends it"
            )
        if any(entry.role is not request.role for entry in before):
            raise LocalError(f"{name} is the name of a {before[-1].role.value}; choose another name")
        if not alternatives:
            wanted = "inner addresses" if request.role is Role.CLIENT else "addresses or DNS names"
            raise LocalError(f"found no {wanted} for {name}, expected at least one")
        if request.role is Role.CLIENT and len(alternatives) > MAX_ADDRESSES:
            raise LocalError(f"found {len(alternatives)} inner addresses, expected at most {MAX_ADDRESSES}")
        self._refuse_shared(replace(request, alternatives=alternatives), now)
        if now >= self.certificate.not_valid_after_utc:
            raise LocalError(
                f"{self.directory}: this authority has expired; make another one in another directory"
            )
        return replace(request, alternatives=alternatives)

    @contextmanager
    def issuing(self, request: Request, passphrase: bytes, now: datetime) -> Iterator[Issued]:
        """
        Make the certificate that a checked request wants; what the caller does with it may fail.

        Then the index is as before. Raises `LocalError` if the passphrase is wrong.
        """
        issuer = self._unlock(passphrase)
        end = min(now + timedelta(days=request.days), self.certificate.not_valid_after_utc)
        validity = Validity(max(now - BACKDATED, self.certificate.not_valid_before_utc), end)
        serial, key = x509.random_serial_number(), keys.generate(request.kind)
        certificate = certificates.node_certificate(
            issuer, request.role, request.name, request.alternatives, key, serial, validity
        )
        before = self.entries
        entry = Entry(serial, request.role, request.name, request.alternatives, now, end)
        self._record([*before, entry])
        try:
            yield Issued(entry, certificate.public_bytes(Encoding.PEM), keys.plain_pem(key))
        except BaseException:
            self._record(before)
            raise

    def to_revoke(self, names: Iterable[str], now: datetime) -> set[int]:
        """
        Return the serial numbers of all valid certificates of these names.

        Raises `LocalError` if a name has none, nor one whose revocation did not get into the list.
        """
        serials: set[int] = set()
        unlisted = self.unlisted
        for name in names:
            own = [entry for entry in self.entries if entry.name == name]
            live = {entry.serial for entry in own if entry.is_live(now)}
            if not live and not any(entry.serial in unlisted for entry in own):
                raise LocalError(f"{name} has no certificate that is valid; rvpn pki show lists all")
            serials |= live
        return serials

    def revoke(self, serials: set[int], passphrase: bytes, now: datetime) -> None:
        """
        Revoke certificates, and write the revocation list anew.

        Raises `LocalError` if the passphrase is wrong.
        """
        issuer = self._unlock(passphrase)
        entries = [
            replace(entry, revoked=now) if entry.serial in serials else entry for entry in self.entries
        ]
        revocations = _revocations(issuer, entries, self._last_number(), now)
        self._record(entries)
        self._place.write(REVOCATIONS, revocations)

    def _last_number(self) -> int:
        """Return the number of the last list, 0 if that is lost: the clock's is greater in any case."""
        with suppress(LocalError, ValueError, x509.ExtensionNotFound):
            return self.revocations.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        return 0

    def _refuse_shared(self, request: Request, now: datetime) -> None:
        """
        Raise `LocalError` if another node of this role has one of the addresses, and could come with it.

        Gateways take a client's inner addresses from its certificate, and clients know gateways by address.
        DNS names may be shared: several gateways can stand behind one.
        """
        what = "inner address" if request.role is Role.CLIENT else "address"
        for entry in self.entries:
            if entry.role is request.role and entry.name != request.name and entry.is_live(now):
                for address in filter(is_address, set(request.alternatives) & set(entry.alternatives)):
                    raise LocalError(
                        f"{what} {address} belongs to {entry.role.value} {entry.name}; choose another, "
                        f"or end that with: rvpn pki revoke {entry.name}"
                    )

    def _check_rights(self) -> None:
        """Raise `LocalError` if the key's own rights would let others read it, wherever it is moved to."""
        path = self.directory / KEY
        mode = path.stat().st_mode if path.exists() else 0
        if open_to_others(mode):
            raise LocalError(f"{path}: found mode {stat.S_IMODE(mode):04o}, expected 0600: chmod 600 {path}")

    def _unlock(self, passphrase: bytes) -> Issuer:
        path = str(self.directory / KEY)
        key = keys.load(self._read(KEY), passphrase, path)
        if key.public_key() != self.certificate.public_key():
            raise LocalError(f"{path}: found a key that is not that of {self.directory / CERTIFICATE}")
        return Issuer(self.certificate, key)

    def _record(self, entries: list[Entry]) -> None:
        self._place.write(INDEX, write(entries))
        self.entries = entries

    def _read(self, name: str) -> bytes:
        data = self._place.read(name)
        if data is None:
            raise LocalError(f"{self.directory / name}: no such file; an authority cannot do without it")
        return data


@contextmanager
def _new_directory(directory: Path) -> Iterator[StateDirectory]:
    """Lead to a temporary directory, which gets its name when the body is done without an error."""
    parent = directory.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=parent, prefix=f".{directory.name}."))
    except OSError as error:
        raise LocalError(f"{directory}: cannot make this directory: {error.strerror}") from None
    place = StateDirectory(temporary, "new directory")
    try:
        yield place
        # This replaces an empty directory, and fails for any other.
        temporary.rename(directory)
    except OSError as error:
        raise LocalError(
            f"{directory}: cannot make this directory: {error.strerror}; what is there is left as it is"
        ) from None
    finally:
        place.close()
        shutil.rmtree(temporary, ignore_errors=True)


def _renewed(before: list[Entry], name: str) -> Entry:
    """Return the certificate that is to be renewed. `LocalError`: there is none, or it was revoked."""
    if not before:
        raise LocalError(f"{name} has no certificate that could be renewed; rvpn pki show lists all")
    last = before[-1]
    if last.revoked:
        raise LocalError(
            f"{name} was revoked on {last.revoked:%Y-%m-%d}: to let it in again, remove what was made for it "
            "before, and issue it without --renew"
        )
    return last


def _revocations(issuer: Issuer, entries: Iterable[Entry], last_number: int, now: datetime) -> bytes:
    revoked = [(entry.serial, entry.revoked) for entry in entries if entry.revoked]
    number = max(last_number + 1, int(now.timestamp()))
    return certificates.revocation_list(issuer, revoked, number, now).public_bytes(Encoding.PEM)
