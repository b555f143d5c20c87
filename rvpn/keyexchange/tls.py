"""
The mechanism `tls`: TLS 1.3 with certificates at both ends, as a security context (RFC 8446).

    -> ClientHello
    <- ServerHello, CertificateRequest, Certificate, CertificateVerify, Finished
    -> Certificate, CertificateVerify, Finished, parameters
    <- parameters

pyOpenSSL runs it in memory; tokens are what it writes between two reads. The parameters are application data,
and neither end is established before it has the other's: an initiator is done with its handshake before the
acceptor has seen a certificate. There are no tickets, no resumption and no early data (docs/decisions/0100).

`CertificateAuthenticator` holds what a node has on disk, and makes the contexts. Which role of TLS an end has
says nothing about its role in the VPN; that, and validity at the time given to each context, are checked by
`rvpn.keyexchange.certificates`. For randomness OpenSSL has a source of its own (docs/decisions/0101).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from math import inf
from typing import Any, NoReturn

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags

from rvpn.constants import Mechanism, Role
from rvpn.errors import ContextFailed, DropReason, LocalError, RemoteError
from rvpn.interfaces import Authentication, Initiation, IPAddress, Parameters, PeerIdentity
from rvpn.keyexchange import certificates
from rvpn.keyexchange import parameters as codec
from rvpn.keyexchange.certificates import DIGESTS, KEYS, UNREADABLE, Authority, Refused, printable, title

#: Key agreements that are accepted, by OpenSSL's names; it offers and prefers the first by itself.
GROUPS = {"X25519MLKEM768": "X25519MLKEM768", "x25519": "X25519"}
#: Security level 3, nothing weaker than 128 bits: no RSA below 3072, no SHA-1 (SSL_CTX_set_security_level).
_CIPHERS = b"DEFAULT@SECLEVEL=3"
_LONGEST_TOKEN = 1 << 16
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
        self.peer_role = Role.CLIENT if files.role is Role.GATEWAY else Role.GATEWAY
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

    # --- contexts -------------------------------------------------------------------------------------------

    def initiator(
        self, peer: PeerIdentity, prologue: bytes, parameters: Parameters, time_of_day: float
    ) -> "TLSInitiator":
        """Return the context of an end that begins an exchange with `peer`."""
        return TLSInitiator(self, peer, prologue, parameters, time_of_day)

    def acceptor(
        self,
        peer: PeerIdentity | None,
        prologue: bytes,
        authorize: Callable[[Initiation], Parameters],
        time_of_day: float,
    ) -> "TLSAcceptor":
        """Return the context of an end that answers `peer`, or (None) whoever has a certificate."""
        return TLSAcceptor(self, peer, prologue, authorize, time_of_day)

    def connection(self) -> SSL.Connection:
        """Return a new connection in memory."""
        return SSL.Connection(self._context, None)

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
        self, chain: Sequence[x509.Certificate], peer: PeerIdentity | None, time_of_day: float
    ) -> tuple[PeerIdentity, tuple[IPAddress, ...], Authority]:
        """
        Return who presented a chain that OpenSSL verified, its inner addresses, and its authority.

        Raises `Refused`, where `peer` is given also for anybody else.
        """
        certificate, authority = chain[0], self._authorities.get(certificates.fingerprint(chain[-1]))
        if authority is None or len(chain) != 2:
            raise Refused(title(certificate), "that of an authority itself", _ONE_OF_OURS)
        try:
            for one in chain:
                certificates.check_validity(one, time_of_day)
            identity, inner = self._who(certificate, authority, peer)
            objection = authority.objection(certificate.serial_number, inner)
        except UNREADABLE:
            raise Refused(title(certificate), "contents that cannot be read", "those of RFC 5280") from None
        if objection is not None:
            raise Refused(title(certificate), *objection)
        if peer is not None and peer != identity:
            raise Refused(title(certificate), identity.name, peer.name)
        return identity, inner, authority

    def _who(
        self, certificate: x509.Certificate, authority: Authority, peer: PeerIdentity | None
    ) -> tuple[PeerIdentity, tuple[IPAddress, ...]]:
        if self.peer_role is Role.CLIENT:
            return certificates.check_client(certificate, authority)
        assert peer is not None  # a client knows whom it expects
        certificates.check_gateway(certificate, peer.name)
        return peer, ()

    def objection(self, authentication: Authentication, inner_addresses: Sequence[IPAddress]) -> str:
        """Return why a peer that authenticated before would be refused now, empty if it would not."""
        authority = self._authorities.get(authentication.authority)
        if authority is None:
            return "the policy no longer has its authority"
        inner = inner_addresses if self.peer_role is Role.CLIENT else ()
        objection = authority.objection(authentication.serial, inner)
        return f"certificate {printable(authentication.subject)}: {objection[0]}" if objection else ""


# --- Security contexts ----------------------------------------------------------------------------------


@contextmanager
def _failing() -> Iterator[None]:
    """Turn OpenSSL's errors, and refusals, into the end of a context."""
    try:
        yield
    except SSL.Error as error:
        raise ContextFailed(DropReason.AUTHENTICATION_FAILED, _words(error)) from None
    except ContextFailed:
        raise
    except RemoteError as error:
        raise ContextFailed(error.reason, error.detail) from None


def _words(error: SSL.Error) -> str:
    """Return OpenSSL's own words, the last of them; it has none for an end of its input."""
    queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
    reasons = [str(entry[-1]) for entry in queue if entry[-1]]
    return f"TLS: {reasons[-1] if reasons else type(error).__name__}"


class _TLSContext:
    """What both ends have in common: tokens into the connection and out of it, and keys once established."""

    def __init__(
        self,
        authenticator: CertificateAuthenticator,
        peer: PeerIdentity | None,
        prologue: bytes,
        time_of_day: float,
    ) -> None:
        self._authenticator = authenticator
        self._expected = peer
        self._prologue = prologue
        self._time_of_day = time_of_day
        self._connection = authenticator.connection()
        self._shaken = self._failed = False
        self._said = self._heard = b""
        self._own: Parameters | None = None
        self._theirs: Parameters | None = None
        self._peer: PeerIdentity | None = None
        self._authentication: Authentication | None = None
        self._inner_addresses: tuple[IPAddress, ...] = ()

    @property
    def established(self) -> bool:
        """Whether the handshake is over and both ends' parameters are here."""
        return self._own is not None and self._theirs is not None

    @property
    def peer(self) -> PeerIdentity:
        """Who the other end is, by its certificate."""
        return self._peer or _unknown()

    @property
    def authentication(self) -> Authentication:
        """The other end's certificate, and what was negotiated."""
        return self._authentication or _unknown()

    @property
    def own_parameters(self) -> Parameters:
        """What this end said."""
        return self._own or _unknown()

    @property
    def peer_parameters(self) -> Parameters:
        """What the peer said."""
        return self._theirs or _unknown()

    def export(self, label: bytes, length: int) -> bytes:
        """
        Return secret bytes (RFC 8446 section 7.5), bound to the prologue and to what both ends said.

        The exporter covers the handshake alone: the parameters come after it.
        """
        if not self.established:
            _unknown()
        first, second = (self._said, self._heard) if self._begins else (self._heard, self._said)
        bound = self._prologue + blake2b(first).digest() + blake2b(second).digest()
        return self._connection.export_keying_material(b"EXPORTER-" + label, length, bound)

    _begins: bool

    def step(self, token: bytes | None) -> bytes | None:
        """See `SecurityContext`. After a `ContextFailed` every further token draws one."""
        if self._failed or self.established:
            raise ContextFailed(DropReason.AUTHENTICATION_FAILED, "the exchange is over")
        self._failed = True
        with _failing():
            self._take(token)
            answer = self._go_on()
        self._failed = False
        return answer

    def _go_on(self) -> bytes | None:
        """Do what is to be done with a token that the connection has."""
        raise NotImplementedError

    def _take(self, token: bytes | None) -> None:
        if token is not None and self._connection.bio_write(token or b"\0") != len(token):
            raise RemoteError(DropReason.MALFORMED_KEY_EXCHANGE, "an empty token, or one too long")

    def _shake(self) -> bool:
        """Go on with the handshake; return whether that has completed it."""
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        self._judge()
        self._shaken = True
        return True

    def _judge(self) -> None:
        """See who the peer is, and what was negotiated. Raises `Refused`."""
        connection = self._connection
        chain = connection.get_verified_chain(as_cryptography=True)
        if not chain:
            raise Refused("a peer", "no certificate", _ONE_OF_OURS)
        self._peer, self._inner_addresses, authority = self._authenticator.judge(
            chain, self._expected, self._time_of_day
        )
        group = connection.get_group_name() or "none"
        if group not in GROUPS:
            raise Refused(title(chain[0]), f"key agreement {group}", " or ".join(GROUPS.values()))
        self._authentication = Authentication(
            Mechanism.TLS,
            GROUPS[group],
            connection.get_cipher_name() or "",
            certificates.common_name(chain[0].subject) or self._peer.name,
            authority.name,
            chain[0].serial_number,
            authority.fingerprint,
            certificates.expiry(*chain),
        )

    def _written(self) -> bytes:
        """Return the next token: all that the connection has written."""
        try:
            return self._connection.bio_read(_LONGEST_TOKEN)
        except SSL.WantReadError:
            raise RemoteError(DropReason.MALFORMED_KEY_EXCHANGE, "a token that leads to nothing") from None

    def _say(self, parameters: Parameters) -> None:
        self._said = codec.encode(parameters)
        self._connection.sendall(self._said)

    def _hear(self) -> Parameters:
        try:
            self._heard = self._connection.recv(codec.MAX_PARAMETERS + 1)
        except SSL.WantReadError:
            raise RemoteError(DropReason.MALFORMED_KEY_EXCHANGE, "no parameters") from None
        return codec.decode(self._heard)


def _unknown() -> NoReturn:
    raise LocalError("the security context is not established")


class TLSInitiator(_TLSContext):
    """The end that begins: it shows its certificate and parameters to who has shown the right certificate."""

    _begins = True

    def __init__(
        self,
        authenticator: CertificateAuthenticator,
        peer: PeerIdentity,
        prologue: bytes,
        parameters: Parameters,
        time_of_day: float,
    ) -> None:
        super().__init__(authenticator, peer, prologue, time_of_day)
        self._offer = parameters
        self._connection.set_connect_state()

    def _go_on(self) -> bytes | None:
        if self._shaken:
            self._theirs = self._hear()
            self._own = self._offer
            return None
        if self._shake():
            self._say(self._offer)
        return self._written()


class TLSAcceptor(_TLSContext):
    """The end that answers. `authorize` decides with which parameters, if at all."""

    _begins = False

    def __init__(
        self,
        authenticator: CertificateAuthenticator,
        peer: PeerIdentity | None,
        prologue: bytes,
        authorize: Callable[[Initiation], Parameters],
        time_of_day: float,
    ) -> None:
        super().__init__(authenticator, peer, prologue, time_of_day)
        self._authorize = authorize
        self._connection.set_accept_state()

    def _go_on(self) -> bytes | None:
        if self._shake():
            offer = self._hear()
            inner = self._inner_addresses if self._authenticator.peer_role is Role.CLIENT else None
            answer = self._authorize(Initiation(self.peer, None, offer, inner))
            self._say(answer)
            self._own, self._theirs = answer, offer
        return self._written()
