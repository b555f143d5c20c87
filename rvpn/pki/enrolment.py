"""
One file with everything that a new client needs: a policy whose certificates and secret key stand in it.

    what all clients have in common (a policy without identity) + what one client has of its own -> its policy
"""

from dataclasses import dataclass, field
from datetime import datetime

from rvpn.constants import Mechanism
from rvpn.interfaces import IPAddress
from rvpn.policy import Diagnostic, PolicyError, Severity
from rvpn.policy.grammar import Reading, read


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What one client has of its own; certificates, key and revocation list are PEM."""

    name: str
    addresses: tuple[IPAddress, ...]
    expires: datetime
    certificate: str
    key: str = field(repr=False)
    authority: str
    revocations: str


class Template:
    """
    What all clients have in common: `Template(text, filename)`.

    Raises `PolicyError` if it is no client's policy, or has what is each client's own.
    """

    def __init__(self, text: bytes, filename: str) -> None:
        self._reading = read(text, filename)
        if faults := self._reading.errors or _faults(self._reading):
            raise PolicyError(faults)
        self._lines = text.decode("utf-8-sig").replace("\r\n", "\n").rstrip().split("\n")

    def policy(self, enrolment: Enrolment) -> str:
        """Return the client's policy."""
        stated = self._reading.lines
        added = {
            "GENERAL": "" if "Mechanism" in stated else "Mechanism = tls",
            "DEVICE": f"InnerAddress = {' '.join(map(str, enrolment.addresses))}",
        }
        lines = [_HEADING.format(name=enrolment.name, expires=enrolment.expires)]
        sections = {number: name[1:-1] for name, number in stated.items() if name.startswith("[")}
        for number, line in enumerate(self._lines, 1):
            lines.append(line)
            if number in sections and (statement := added.pop(sections[number], "")):
                lines.append(statement)
        lines += (f"\n[{section}]\n{statement}" for section, statement in added.items() if statement)
        own = _OWN.format(
            certificate=enrolment.certificate,
            key=enrolment.key,
            authority=enrolment.authority,
            revocations=enrolment.revocations,
        )
        return "\n".join(lines) + own


_HEADING = """\
; The policy of client {name}, with its secret key: nobody else may read it.
; Its certificate expires on {expires:%Y-%m-%d}."""

_OWN = """

[IDENTITY]
Certificate =
{certificate}
CertificateKey =
{key}
[AUTHORITIES]
Authority1 =
{authority}
Revoked =
{revocations}"""


def _faults(reading: Reading) -> list[Diagnostic]:
    """Find what a template must not have, or lacks."""
    faults = [
        _fault(reading, place, f"found {place}, expected none: it is added for each client")
        for place in ("[IDENTITY]", "[AUTHORITIES]", "InnerAddress")
        if place in reading.lines
    ]
    if "Mechanism" in reading.lines and reading.policy.mechanism is not Mechanism.TLS:
        faults.append(_fault(reading, "Mechanism", "found another mechanism, expected tls"))
    if not reading.policy.tunnels:
        faults.append(_fault(reading, "[TUNNEL]", "found no entry in [TUNNEL], expected one"))
    return faults


def _fault(reading: Reading, place: str, message: str) -> Diagnostic:
    return Diagnostic(reading.filename, reading.lines.get(place, 1), Severity.ERROR, message)
