"""
The mechanism `tls`: TLS 1.3 with certificates at both ends, as a security context (RFC 8446).

    -> ClientHello
    <- ServerHello, CertificateRequest, Certificate, CertificateVerify, Finished
    -> Certificate, CertificateVerify, Finished, parameters
    <- parameters

pyOpenSSL runs it in memory; tokens are what it writes between two reads. The parameters are application data,
and neither end is established before it has the other's: an initiator is done with its handshake before the
acceptor has seen a certificate. There are no tickets, no resumption and no early data (docs/decisions/0100).

Which role of TLS an end has says nothing about its role in the VPN. Who a peer is, and whether it is
accepted, is for the `Judge` to say: `rvpn.keyexchange.authenticator`, which makes the contexts. For
randomness OpenSSL has a source of its own (docs/decisions/0101).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

from cryptography import x509
from OpenSSL import SSL

from rvpn.constants import Mechanism
from rvpn.errors import ContextFailed, DropReason, RemoteError
from rvpn.interfaces import Authentication, Initiation, Parameters, PeerIdentity
from rvpn.keyexchange import certificates
from rvpn.keyexchange import parameters as codec
from rvpn.keyexchange.certificates import Judgement, Refused, title
from rvpn.keyexchange.context import Context, known

#: Key agreements that are accepted, by OpenSSL's names; it offers and prefers the first by itself.
GROUPS = {"X25519MLKEM768": "X25519MLKEM768", "x25519": "X25519"}
_LONGEST_TOKEN = 1 << 16

#: Says who presented a verified chain of certificates, or raises `Refused`.
Judge = Callable[[Sequence[x509.Certificate]], Judgement]


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


class _TLSContext(Context):
    """What both ends have in common: tokens into the connection and out of it, and keys once established."""

    _begins: bool

    def __init__(
        self,
        connection: SSL.Connection,
        judge: Judge,
        prologue: bytes,
    ) -> None:
        """`connection` is a new one, in memory."""
        super().__init__()
        self._connection = connection
        self._judge = judge
        self._prologue = prologue
        self._handshake_done = self._failed = False
        self._said = self._heard = b""
        self._judgement: Judgement | None = None
        self._authentication: Authentication | None = None

    @property
    def established(self) -> bool:
        """Whether the handshake is over and both ends' parameters are here."""
        return self._own_parameters is not None and self._peer_parameters is not None

    @property
    def peer(self) -> PeerIdentity:
        """Who the other end is, by its certificate."""
        return known(self._judgement).identity

    @property
    def authentication(self) -> Authentication:
        """The other end's certificate, and what was negotiated."""
        return known(self._authentication)

    def export(self, label: bytes, length: int) -> bytes:
        """
        Return secret bytes (RFC 8446 section 7.5), bound to the prologue and to what both ends said.

        The exporter covers the handshake alone: the parameters come after it.
        """
        known(self._own_parameters)
        first, second = (self._said, self._heard) if self._begins else (self._heard, self._said)
        bound = self._prologue + blake2b(first).digest() + blake2b(second).digest()
        return self._connection.export_keying_material(b"EXPORTER-" + label, length, bound)

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

    def _handshake(self) -> bool:
        """Go on with the handshake; return whether that has completed it."""
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        self._see_peer()
        self._handshake_done = True
        return True

    def _see_peer(self) -> None:
        """See who the peer is, and what was negotiated. Raises `Refused`."""
        connection = self._connection
        chain = connection.get_verified_chain(as_cryptography=True)
        if not chain:
            raise Refused("a peer", "no certificate", "one")
        self._judgement = judgement = self._judge(chain)
        group = connection.get_group_name() or "none"
        if group not in GROUPS:
            raise Refused(title(chain[0]), f"key agreement {group}", " or ".join(GROUPS.values()))
        self._authentication = Authentication(
            Mechanism.TLS,
            GROUPS[group],
            connection.get_cipher_name() or "",
            certificates.common_name(chain[0].subject) or judgement.identity.name,
            judgement.authority.name,
            chain[0].serial_number,
            judgement.authority.fingerprint,
            certificates.expiry(*chain),
            judgement.inner_addresses or (),
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


class TLSInitiator(_TLSContext):
    """The end that begins: it shows its certificate and parameters to who has shown the right certificate."""

    _begins = True

    def __init__(
        self,
        connection: SSL.Connection,
        judge: Judge,
        prologue: bytes,
        parameters: Parameters,
    ) -> None:
        super().__init__(connection, judge, prologue)
        self._offer = parameters
        self._connection.set_connect_state()

    def _go_on(self) -> bytes | None:
        if self._handshake_done:
            self._peer_parameters = self._hear()
            self._own_parameters = self._offer
            return None
        if self._handshake():
            self._say(self._offer)
        return self._written()


class TLSAcceptor(_TLSContext):
    """The end that answers. `authorize` decides with which parameters, if at all."""

    _begins = False

    def __init__(
        self,
        connection: SSL.Connection,
        judge: Judge,
        prologue: bytes,
        authorize: Callable[[Initiation], Parameters],
    ) -> None:
        super().__init__(connection, judge, prologue)
        self._authorize = authorize
        self._connection.set_accept_state()

    def _go_on(self) -> bytes | None:
        if self._handshake():
            offer = self._hear()
            inner = known(self._judgement).inner_addresses
            answer = self._authorize(Initiation(self.peer, None, offer, inner))
            self._say(answer)
            self._own_parameters, self._peer_parameters = answer, offer
        return self._written()
