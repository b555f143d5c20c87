"""
Text -> statements: the first half of reading a policy file (DESIGN 7).

`Source` takes a file line by line: it cuts off comments, follows the sections, looks each keyword up in
`keys.KEYS` and has the key's type convert the value. Where a value is the name of a PEM file, that file's
content may stand on the lines below instead. Faults become `Diagnostic`s and reading goes on.
"""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from string import digits
from typing import Any, NamedTuple

from rvpn.interfaces import IPAddress
from rvpn.policy.diagnostics import Diagnostic, Severity
from rvpn.policy.keys import KEYS, SECTIONS, Key
from rvpn.policy.values import HOST, QUOTED_LENGTH, GrammarError, quote

#: Bytes of the longest line; a cluster of a hundred gateways fits.
MAX_LINE = 4096
#: Digits of the longest number of a tunnel entry, cluster or client.
MAX_DIGITS = 60
_BEGIN, _END = b"-----BEGIN ", b"-----END "
_PEM_LINE = re.compile(rb"-----(BEGIN|END) [A-Z0-9 ]{1,40}-----|[A-Za-z0-9+/]{1,128}={0,2}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Statement(NamedTuple):
    """
    One `keyword = value`.

    `name` is the left side as messages write it (`Port`, `Tunnel1`, `192.0.2.1`), `label` the number or
    address in it that tells statements of one key apart, `value` what the key's type made of the right side.
    """

    line: int
    name: str
    key: Key
    label: Any
    value: Any


class Source:
    """
    What a policy file states, and what is wrong with it.

    `lines` tells where each section (`[LAN]`) and each statement (by name) stands, faulty ones included.
    `errors` are in the order of their discovery.
    """

    def __init__(self, text: str | bytes, filename: str) -> None:
        self.filename = filename
        self.statements: list[Statement] = []
        self.lines: dict[str, int] = {}
        self.errors: list[Diagnostic] = []
        self._section: str | None = ""  # empty before the first, None after a faulty one
        for line, raw, below in _with_pem(_numbered(text)):
            try:
                self._take(line, _without_comment(raw), _pem(below))
            except GrammarError as fault:
                self.error(line, fault)

    def error(self, line: int, fault: Exception, name: str = "") -> None:
        """Add a fault, which belongs to the statement of that name, to the errors."""
        message = f"{name}: {fault}" if name else str(fault)
        self.errors.append(Diagnostic(self.filename, line, Severity.ERROR, message))

    def of(self, field: str) -> list[Statement]:
        """Return the faultless statements for one field of `Policy`, in the order of the file."""
        return [statement for statement in self.statements if statement.key.field == field]

    def _take(self, line: int, text: str, pem: str) -> None:
        if text.startswith("["):
            self._section = None
            self._section = _section_named(text)
            self._is_first(line, f"[{self._section}]")
            if pem:
                raise GrammarError("PEM below a section", "above it the statement to which it belongs")
        elif text and self._section:
            self._statement(line, self._section, text, pem)
        elif (text or pem) and self._section == "":
            self._section = None
            found = f"{quote(text) if text else 'PEM'} before any section"
            raise GrammarError(found, f"[{SECTIONS[0]}] or another section first")

    def _is_first(self, line: int, name: str) -> bool:
        """Note where a section or statement stands; report it if it stood before."""
        first = self.lines.setdefault(name, line)
        if first != line:
            self.error(line, GrammarError(f"a second {name} (the first is on line {first})", "only one"))
        return first == line

    def _statement(self, line: int, section: str, text: str, pem: str) -> None:
        if _BASE64.fullmatch(text):
            # It may be a line of a secret key, and must not be quoted.
            raise GrammarError("base64 outside of a PEM block", "-----BEGIN ...----- above it")
        left, equals, right = (part.strip() for part in text.partition("="))
        if not (left and equals):
            raise GrammarError(quote(text), "<keyword> = <value>")
        key, label = _key_named(section, left)
        name = key.statement(label)
        first = self._is_first(line, name)
        try:
            value = key.type.parse_pem(right, pem) if pem else key.type.parse(right)
        except* GrammarError as faults:
            for fault in faults.exceptions:
                self.error(line, fault, name)
        else:
            if first:
                self.statements.append(Statement(line, name, key, label, value))


def _numbered(text: str | bytes) -> Iterator[tuple[int, bytes]]:
    """Number the lines from 1; a byte order mark is no part of the first."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)


def _with_pem(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes, list[bytes]]]:
    """
    Yield each line with the lines of the PEM blocks that follow it (RFC 7468).

    Blank lines and comments in between belong to nothing.
    """
    above: tuple[int, bytes, list[bytes]] = (1, b"", [])
    inside = False
    for number, raw in lines:
        line = raw.strip()
        if inside or line.startswith(_BEGIN):
            above[2].append(line)
            inside = not line.startswith(_END)
        elif not line or line.startswith((b";", b"#")):
            yield number, raw, []
        else:
            yield above
            above = (number, raw, [])
    yield above


def _pem(lines: list[bytes]) -> str:
    """Return PEM blocks as text. Raises `GrammarError` if one is not complete or holds something else."""
    if lines and not lines[-1].startswith(_END):
        raise GrammarError("a PEM block without an end", "-----END ...-----")
    if not all(_PEM_LINE.fullmatch(line) for line in lines):
        raise GrammarError("a PEM block that holds something else", "base64 alone")
    return "".join(f"{line.decode()}\n" for line in lines)


def _without_comment(raw: bytes) -> str:
    """Return what a line says. Raises `GrammarError` if it is not plain text of bounded length."""
    if len(raw) > MAX_LINE:
        raise GrammarError(f"a line of {len(raw)} bytes", f"at most {MAX_LINE}")
    try:
        line = raw.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise GrammarError(f"byte 0x{raw[error.start]:02x}", "UTF-8 text") from None
    if control := _CONTROL_CHARACTER.search(line):
        raise GrammarError(f"control character U+{ord(control[0]):04X}", "text")
    return re.split("[;#]", line, maxsplit=1)[0].strip()


def _folded(name: str) -> str:
    """Names are compared without regard to case and blanks: `Redirect Tunnel` is `RedirectTunnel`."""
    return "".join(name.split()).casefold()


def _nearest(name: str, known: dict[str, str]) -> str:
    """Say which of the known names, keyed by their folded form, is nearest, or else what all of them are."""
    nearest = get_close_matches(_folded(name)[:QUOTED_LENGTH], known, n=1, cutoff=0.5)
    return f"{known[nearest[0]]}, the nearest known" if nearest else f"one of {', '.join(known.values())}"


def _section_named(header: str) -> str:
    """Return the section that a `[...]` line opens. Raises `GrammarError`."""
    if not header.endswith("]"):
        raise GrammarError(quote(header), "[<section>] alone on its line")
    name = header[1:-1]
    known = {_folded(section): section for section in SECTIONS}
    if _folded(name) not in known:
        raise GrammarError(f"section {quote(name)}", _nearest(name, {f: f"[{s}]" for f, s in known.items()}))
    return known[_folded(name)]


_KEYS = {
    section: {_folded(key.keyword): key for key in KEYS if key.section == section} for section in SECTIONS
}


def _key_named(section: str, left: str) -> tuple[Key, int | IPAddress | None]:
    """Return the key that the left side of a statement names, and its label. Raises `GrammarError`."""
    keys = _KEYS[section]
    if "" in keys:
        return keys[""], HOST.parse(left)
    stem = left.rstrip(digits)
    number = left[len(stem) :]
    key = keys.get(_folded(stem))
    if key is None:
        elsewhere = [f"it in [{other}]" for other, known in _KEYS.items() if _folded(stem) in known]
        expected = elsewhere or [_nearest(stem, {folded: key.syntax for folded, key in keys.items()})]
        raise GrammarError(f"key {quote(left)} in [{section}]", expected[0])
    if len(number) > MAX_DIGITS:
        raise GrammarError(f"a number of {len(number)} digits", f"at most {MAX_DIGITS}")
    if (number and not key.numbered) or (not number and key.number_required):
        raise GrammarError(f"key {quote(left)}", key.syntax)
    return key, int(number) if number else None
