"""
What a certificate is about: the name that people know it by, and its subject alternative names.

A name goes into the subject's common name and into file names. Subject alternative names are IP addresses
or, for gateways alone, DNS names; here and in the index they are text in its canonical form.
"""

import re
from collections.abc import Iterable

from rvpn.constants import Role
from rvpn.errors import LocalError
from rvpn.keyexchange.certificates import MAX_NAME
from rvpn.policy.values import DNS_NAME, HOST, quote

#: What lies in the authority's own directory.
RESERVED = {"ca", "crl", "index"}
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._@-]{{0,{MAX_NAME - 1}}}")


def checked_name(text: str) -> str:
    """Return the name of a node. Raises `LocalError` if it is not fit for a certificate and a file."""
    if not _NAME.fullmatch(text) or text.casefold() in RESERVED:
        raise LocalError(
            f"found name {quote(text)}, expected at most {MAX_NAME} letters, digits or . _ @ -, "
            f"a letter or digit first, and none of {', '.join(sorted(RESERVED))}"
        )
    return text


def checked_alternatives(role: Role, texts: Iterable[str]) -> tuple[str, ...]:
    """
    Return the subject alternative names for a role, each once and in canonical form.

    Raises `LocalError` if one is no address that leads to a machine from elsewhere, nor for a gateway a DNS
    name.
    """
    return tuple(dict.fromkeys(_alternative(role, text) for text in texts))


def _alternative(role: Role, text: str) -> str:
    try:
        address = HOST.parse(text)
    except LocalError:
        if role is Role.CLIENT:
            raise
    else:
        if address.is_loopback or address.is_link_local:
            raise LocalError(
                f"found {address}, expected an address by which other networks reach this machine"
            )
        return str(address)
    name = text.lower().removesuffix(".")
    if not re.fullmatch(DNS_NAME, name):
        raise LocalError(f"found {quote(text)}, expected {HOST.name}, or a DNS name")
    return name
