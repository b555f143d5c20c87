"""
What a node authenticates with by the mechanism `tls`: its certificate, and whose certificates it accepts.

    files -> CertificateAuthenticator -> contexts (`rvpn.keyexchange.tls`)
    a peer's chain -> OpenSSL: did an authority of the policy issue it? -> `judge`: who is it, is it good now?
    a session that exists -> `objection`: would it be refused now?

OpenSSL verifies signatures and the strength of keys. Purpose, validity and revocation are judged here and in
`rvpn.keyexchange.certificates`: the roles of the VPN are not those of TLS, the time is the one that is given
(docs/decisions/0101), and the lists are asked about sessions too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags

from rvpn.constants import Role
from rvpn.errors import LocalError
from rvpn.interfaces import (
    Authentication,
    Initiation,
    IPAddress,
    Parameters,
    PeerIdentity,
    RevocationState,
)
from rvpn.keyexchange import certificates
from rvpn.keyexchange.certificates import (
    DIGESTS,
    KEYS,
    UNREADABLE,
    Authority,
    Judgement,
    Refused,
    printable,
    title,
)
from rvpn.keyexchange.tls import TLSAcceptor, TLSInitiator

#: Security level 3, nothing weaker than 128 bits: no RSA below 3072, no SHA-1 (SSL_CTX_set_security_level).
_CIPHERS = b"DEFAULT@SECLEVEL=3"
#: OpenSSL's SSL_MODE_NO_AUTO_CHAIN: to send the authority's certificate along is of no use.
_NO_AUTO_CHAIN = 8
#: OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID, CERT_HAS_EXPIRED and INVALID_PURPOSE, which are for us to judge:
#: it has its own clock, and knows but the roles of TLS.
_EARLY, _LATE, _WRONG_PURPOSE = 9, 10, 26
_ONE_OF_OURS = "one by an authority of the policy"

#: What OpenSSL's numbers mean of a certificate: what is found, and what was expected.
_FAULTS: dict[int, tuple[Callable[[x509.Certificate], str], str]] = {
    7: (lambda c: f"a signature that is not {_issuer(c)}'s", _ONE_OF_OURS),
    18: (lambda _: "that it is signed by itself", _ONE_OF_OURS),
    19: (lambda _: "that it is signed by itself", _ONE_OF_OURS),
    20: (lambda c: f"that it is issued by {_issuer(c)}", _ONE_OF_OURS),
    22: (lambda _: "none of the policy's authorities", "one of them as the issuer"),
    34: (lambda _: "a critical extension that is unknown here", "none"),
    47: (lambda _: "a name outside the name constraints of its authority", "one within them"),
    48: (lambda _: "a name that the name constraints of its authority exclude", "another one"),
    66: (lambda c: certificates.key_fault(c) or "a weak key", KEYS),
    67: (lambda c: certificates.key_fault(c) or "a weak key", KEYS),
    68: (lambda c: certificates.digest_fault(c) or "a weak signature", DIGESTS),
}


def _issuer(certificate: x509.Certificate) -> str:
    return printable(certificates.common_name(certificate.issuer))


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """What a node of mechanism `tls` has on disk, read."""

    role: Role
    certificate: x509.Certificate
    private_key: Any = field(repr=False)
    authorities: tuple[Authority, ...]


class CertificateAuthenticator:
    """Makes contexts with one certificate and its authorities; when a file changes there is a new one."""

    def __init__(self, files: CertificateFiles) -> None:
        """Raise `LocalError` if the key is not that of the certificate."""
        self.files = files
        self._peer_role = Role.CLIENT if files.role is Role.GATEWAY else Role.GATEWAY
        self._authorities = {authority.fingerprint: authority for authority in files.authorities}
        self._context = SSL.Context(SSL.TLS_METHOD)
        self._configure()

    def _configure(self) -> None:
        context, files = self._context, self.files
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.set_max_proto_version(SSL.TLS1_3_VERSION)
        context.set_options(SSL.OP_NO_TICKET)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_cipher_list(_CIPHERS)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._verified)
        context.set_verify_depth(0)
        context.set_mode(_NO_AUTO_CHAIN)
        try:
            context.use_certificate(files.certificate)
            context.use_privatekey(files.private_key)
            context.check_privatekey()
        except SSL.Error:
            raise LocalError("found a key that is not the certificate's, expected its own") from None
        # An authority of the policy is trusted even if another one issued its certificate.
        store = context.get_cert_store()
        assert store is not None  # every context has one
        store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
        for authority in files.authorities:
            store.add_cert(X509.from_cryptography(authority.certificate))

    @property
    def name(self) -> str:
        """The name in this node's own certificate."""
        return certificates.common_name(self.files.certificate.subject)

    @property
    def ends(self) -> Mapping[str, float]:
        """See `rvpn.keyexchange.credentials.Authenticator`."""
        ends = {f"this node's certificate {self.name}": certificates.expiry(self.files.certificate)}
        for authority in self.files.authorities:
            of = f"of authority {authority.name}"
            ends[f"the certificate {of}"] = certificates.expiry(authority.certificate)
            if authority.list_ends_at < inf:
                ends[f"the revocation list {of}"] = authority.list_ends_at
        return ends

    @property
    def lists(self) -> Mapping[bytes, RevocationState]:
        """See `rvpn.keyexchange.credentials.Authenticator`."""
        return {
            fingerprint: RevocationState(
                of.name,
                len(of.revoked),
                of.list_number,
                of.list_made_at,
                of.list_ends_at if of.list_ends_at < inf else None,
            )
            for fingerprint, of in self._authorities.items()
        }

    # --- contexts -------------------------------------------------------------------------------------------

    def initiator(
        self, peer: PeerIdentity, prologue: bytes, parameters: Parameters, time_of_day: float
    ) -> TLSInitiator:
        """Return the context of an end that begins an exchange with `peer`."""
        judge = partial(self.judge, peer, time_of_day)
        return TLSInitiator(SSL.Connection(self._context, None), judge, prologue, parameters)

    def acceptor(
        self,
        peer: PeerIdentity | None,
        prologue: bytes,
        authorize: Callable[[Initiation], Parameters],
        time_of_day: float,
    ) -> TLSAcceptor:
        """Return the context of an end that answers `peer`, or (None) whoever has a certificate."""
        judge = partial(self.judge, peer, time_of_day)
        return TLSAcceptor(SSL.Connection(self._context, None), judge, prologue, authorize)

    # --- judgement ------------------------------------------------------------------------------------------

    def _verified(self, _connection: SSL.Connection, raw: X509, error: int, depth: int, ok: int) -> bool:
        """
        Hear of each certificate of a chain what OpenSSL makes of it. Raises `Refused`.

        A gateway that begins an exchange is the client of TLS, and a client's certificate then the server's.
        OpenSSL takes that for a wrong purpose. Purpose and validity are up to `judge`.
        """
        if ok or error in (_EARLY, _LATE) or (error == _WRONG_PURPOSE and depth == 0):
            return True
        try:
            certificate = raw.to_cryptography()
            _ = certificate.extensions  # where OpenSSL finds no issuer, this may be why
            who = title(certificate) if depth == 0 else f"an authority's {title(certificate)}"
            find, expected = _FAULTS.get(error, (lambda _: f"what OpenSSL calls error {error}", "none"))
            raise Refused(who, find(certificate), expected)
        except UNREADABLE:
            raise Refused("a certificate", "contents that cannot be read", "those of RFC 5280") from None

    def judge(
        self, peer: PeerIdentity | None, time_of_day: float, chain: Sequence[x509.Certificate]
    ) -> Judgement:
        """
        Return who presented a chain that OpenSSL verified. Raises `Refused`, also for anybody but `peer`.
        """
        certificate, authority = chain[0], self._authorities.get(certificates.fingerprint(chain[-1]))
        if authority is None or len(chain) != 2:
            raise Refused(title(certificate), "that of an authority itself", _ONE_OF_OURS)
        try:
            for one in chain:
                certificates.check_validity(one, time_of_day)
            identity, inner = self._who(certificate, authority, peer)
            objection = authority.objection(certificate.serial_number, inner or ())
        except UNREADABLE:
            raise Refused(title(certificate), "contents that cannot be read", "those of RFC 5280") from None
        if objection is not None:
            raise Refused(title(certificate), *objection)
        if peer is not None and peer != identity:
            raise Refused(title(certificate), identity.name, peer.name)
        return Judgement(identity, authority, inner)

    def _who(
        self, certificate: x509.Certificate, authority: Authority, peer: PeerIdentity | None
    ) -> tuple[PeerIdentity, tuple[IPAddress, ...] | None]:
        if self._peer_role is Role.CLIENT:
            return certificates.check_client(certificate, authority)
        assert peer is not None  # a client knows whom it expects
        certificates.check_gateway(certificate, peer.name)
        return peer, None

    def objection(self, authentication: Authentication, inner_addresses: Sequence[IPAddress]) -> str:
        """Return why a peer that authenticated before would be refused now, empty if it would not."""
        authority = self._authorities.get(authentication.authority)
        if authority is None:
            return "the policy no longer has its authority"
        who, found = f"certificate {printable(authentication.subject)}", ""
        if objection := authority.objection(authentication.serial, authentication.inner_addresses):
            found, _ = objection
        elif self._peer_role is Role.CLIENT:
            lacking = [str(a) for a in inner_addresses if a not in authentication.inner_addresses]
            found = f"it lacks inner address {' '.join(lacking)}" if lacking else ""
        return f"{who}: {found}" if found else ""
