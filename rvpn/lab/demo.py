"""
`rvpn lab demo`: the patent's Fig. 2 at work, and the proof that the outside sees ciphertext alone.

    network, services, captures -> ping, HTTP and TCP to each target over IPv4 and IPv6 -> counts
        -> gateways fail while traffic flows (`rvpn.lab.story`) -> checks -> HTML file (`rvpn.lab.page`)

Everything is real: twistd processes, TUN devices, packets. What is printed has no control characters; the
exit code is 0 if every check held.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rvpn.constants import Mechanism, Role
from rvpn.errors import LocalError
from rvpn.lab import services, story
from rvpn.lab.capture import LAN_LINK, OUTSIDE_LINK, Capture, Counts
from rvpn.lab.classify import Kind
from rvpn.lab.lab import Lab, fresh_directory, tail
from rvpn.lab.page import journal, page
from rvpn.lab.report import mark, say, table
from rvpn.lab.story import Moment, Story
from rvpn.lab.topology import Topology

PINGS, PING_INTERVAL = 20, 0.01
FILE_SIZE = STREAM_SIZE = 1 << 20
#: What may pass on each link; the links' own traffic is no secret.
OUTSIDE_KINDS = {Kind.ESP, Kind.KEY_EXCHANGE, Kind.SESSION_CONTROL, Kind.KEEPALIVE, Kind.NEIGHBOUR}
LAN_KINDS = {Kind.CLEAR, Kind.NEIGHBOUR}
#: Seconds in which traffic must flow again after a fault, on a machine that may be busy; the policy promises
#: less than half of that.
PATIENCE = 0.5


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold, in words, and whether it does."""

    words: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Visit:
    """What the client measured at one address of a target."""

    target: str
    address: str
    ping: dict[str, Any]
    fetch: dict[str, Any]
    stream: dict[str, Any]


def demonstrate(family: int, keep: bool, report: Path, mechanism: Mechanism = Mechanism.NOISE) -> int:
    """
    Run the demonstration with this outside family and write its report; return 0, or 1 if a check failed.

    With `keep` the laboratory stays, as after `rvpn lab up`. Raises `LocalError` with what went wrong.
    """
    begun = time.monotonic()
    _check_place(report)
    say(f"The patent's Fig. 2: a client, three gateways, three targets. IPv{family} outside, both inside.")
    say("- building the network")
    topology = Topology(family, proxy_arp=True)
    lab = Lab.start(topology, fresh_directory() if keep else None, detached=keep)
    passed = False
    try:
        passed = _demonstrate(lab, report, mechanism)
        say(f"\nThe report, to be opened in a browser: {report.absolute()}")
        say(f"{'Passed' if passed else 'FAILED'} in {time.monotonic() - begun:.1f} s.")
    finally:
        if not (keep and passed):
            lab.close()
    if keep and passed:
        say("The lab stays up. Try: rvpn lab status, rvpn lab exec client sh, rvpn lab fault kill gateway1.")
        say(f"Logs and captures are in {lab.directory}; rvpn lab down ends it.")
    return 0 if passed else 1


def _demonstrate(lab: Lab, report: Path, mechanism: Mechanism) -> bool:
    services.configure(lab, {Role.CLIENT: story.GENERAL}, mechanism)
    with Capture.start(lab, OUTSIDE_LINK) as outside, Capture.start(lab, LAN_LINK) as lan:
        say("- starting three gateways and the client")
        gateway = services.start_all(lab)
        say(f"- the client has a session with {gateway}; starting the targets' servers")
        lab.serve_targets()
        try:
            visits = list(_visit_all(lab))
        except LocalError as error:
            raise LocalError(f"{error}\n{_logs(lab, gateway)}") from None
        links = {"outside": outside.stop(), "LAN": lan.stop()}
    say("\n" + table(_visit_rows(visits)))
    say("\n" + table(_link_rows(links)))
    failures = _let_fail(lab)
    checks = [*_checks(visits, links["outside"], links["LAN"]), *_failure_checks(failures)]
    say("\n" + table((mark(check.holds), check.words) for check in checks))
    passed = all(check.holds for check in checks)
    if not passed:
        say("\n" + _logs(lab, gateway))
    held = ((check.holds, check.words) for check in checks)
    _write(report, page(lab.topology.family, failures, _visit_rows(visits), _link_rows(links), held))
    return passed


def _let_fail(lab: Lab) -> Story:
    say("\nNow gateways fail, and traffic flows all the while. Seconds:\n")

    def told(moment: Moment) -> None:
        say(f"{moment.at:8.3f}  {moment.words}")

    failures = story.tell(lab, told)
    say("\nThe client's own journal:\n\n" + table(journal(failures)))
    return failures


def _check_place(report: Path) -> None:
    """Raise `LocalError` now, and not after the demonstration, if no file can be written there."""
    try:
        with report.open("a") if report.exists() else TemporaryFile(dir=report.absolute().parent):
            pass
    except OSError as error:
        raise LocalError(f"{report}: cannot write the report: {error.strerror}") from None


def _write(report: Path, text: str) -> None:
    try:
        report.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LocalError(f"{report}: cannot write the report: {error.strerror}") from None


def _visit_all(lab: Lab) -> Iterator[Visit]:
    for seed, target in enumerate(lab.topology.target_names):
        for address in map(str, lab.topology.lan_addresses(target)):
            say(f"- {target} at {address}: ping, HTTP, TCP")
            pings = ("--count", PINGS, "--interval", PING_INTERVAL)
            yield Visit(
                target,
                address,
                lab.traffic("client", "ping", address, *pings),
                lab.traffic("client", "fetch", address, "--size", FILE_SIZE, "--seed", seed),
                lab.traffic("client", "stream", address, "--size", STREAM_SIZE, "--seed", seed, "--echo"),
            )


def _visit_rows(visits: Iterable[Visit]) -> Iterator[Sequence[object]]:
    yield "TARGET", "ADDRESS", "PINGS", "MEDIAN", "HTTP, SHA-256", "TCP AND BACK, SHA-256"
    for visit in visits:
        rtt = visit.ping["rtt"]
        median = f"{rtt['median']:.2f} ms" if rtt else "-"
        yield (
            visit.target,
            visit.address,
            f"{visit.ping['received']}/{visit.ping['sent']}",
            median,
            *(_transfer_cell(transfer) for transfer in (visit.fetch, visit.stream)),
        )


def _transfer_cell(transfer: dict[str, Any]) -> str:
    return f"{mark(transfer['ok'])} {transfer['bytes'] / (1 << 20):.1f} MiB {transfer['sha256'][:8]}"


def _link_rows(links: dict[str, Counts]) -> Iterator[Sequence[object]]:
    """One row per link: how many packets of each kind that occurred, or might have occurred."""
    shown = [kind for kind in Kind if kind is not Kind.KEEPALIVE]
    yield "LINK", *(kind.value for kind in shown), "bytes"
    for name, counts in links.items():
        octets = f"{sum(counts.octets.values()):,}"
        yield name, *(f"{counts.packets[kind]:,}" for kind in shown), octets


def _checks(visits: Sequence[Visit], outside: Counts, lan: Counts) -> Iterator[Check]:
    transfers = [transfer for visit in visits for transfer in (visit.fetch, visit.stream)]
    answered = sum(visit.ping["received"] for visit in visits)
    sent = sum(visit.ping["sent"] for visit in visits)
    correct = sum(transfer["ok"] for transfer in transfers)
    yield Check(f"{answered} of {sent} pings were answered", answered == sent)
    yield Check(
        f"{correct} of {len(transfers)} files and streams arrived unchanged", correct == len(transfers)
    )
    yield _only("the outside link carried only ESP, key exchange and session control", outside, OUTSIDE_KINDS)
    yield _only("the LAN carried only packets in clear", lan, LAN_KINDS)
    sealed, clear = outside.packets[Kind.ESP], lan.packets[Kind.CLEAR]
    yield Check(f"both carried the traffic: {sealed:,} and {clear:,} packets", min(sealed, clear) >= sent)
    missed = outside.missed + lan.missed
    yield Check(f"the captures missed {missed} frames", missed == 0)


def _failure_checks(failures: Story) -> Iterator[Check]:
    longest = max(outage.length for outage in failures.outages)
    words = f"no outage was longer than {PATIENCE:g} s: the longest was {longest:.3f} s"
    yield Check(f"{words}, the policy promises {failures.bound:g} s", longest <= PATIENCE)
    final = failures.progress[-1]
    amount = f"{final.verified / 1e6:.1f} MB there and back, {final.wrong} bytes wrong"
    whole = not final.broken and not final.wrong and final.verified > 0
    yield Check(f"one TCP connection outlived it all: {amount}, {final.broken} times broken", whole)
    used = [gateway for _, gateway in failures.used]
    yield Check(f"the client used {', '.join(used)}", len(used) >= 4 and used[0] == used[-1])


def _only(words: str, counts: Counts, allowed: set[Kind]) -> Check:
    strange = {kind: count for kind, count in counts.packets.items() if count and kind not in allowed}
    found = ", ".join(f"{count:,} {kind.value}" for kind, count in strange.items())
    return Check(f"{words}; found {found}" if strange else words, not strange)


def _logs(lab: Lab, gateway: str) -> str:
    return "\n".join(f"{name}:\n{tail(services.log_file(lab, name))}" for name in ("client", gateway))
