"""The status of a service as text for people: headline, clusters, a line per session, offloads, drops."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from time import localtime, strftime
from typing import Any

Status = dict[str, Any]
_Column = tuple[str, Callable[[Status], str]]

_CLIENT: tuple[_Column, ...] = (
    ("GATEWAY", lambda session: session["gateway"]),
    ("IN USE", lambda session: "yes" if session["in_use"] else ""),
    ("STATUS", lambda session: session["status"]),
)
_ENDPOINT: _Column = ("ENDPOINT", lambda session: session["endpoint"])
_COMMON: tuple[_Column, ...] = (
    ("INNER", lambda session: " ".join(session["inner_addresses"])),
    ("AGE", lambda session: duration(session["age"])),
    ("KEYS", lambda session: "none" if session["key_age"] is None else duration(session["key_age"])),
    ("IDLE", lambda session: duration(session["idle"])),
    ("IN", lambda session: _packets(session["packets_in"])),
    ("", lambda session: size(session["bytes_in"])),
    ("OUT", lambda session: _packets(session["packets_out"])),
    ("", lambda session: size(session["bytes_out"])),
    ("TRANSFORM", lambda session: session["transform"] or "none"),
    ("TRAINS", lambda session: "yes" if session["trains"] else "no"),
    ("PEER", lambda session: session["peer"]),
)
_FAILOVER: tuple[_Column, ...] = (
    ("TIME", lambda change: _moment(change["time"])),
    ("CLUSTER", lambda change: change["cluster"]),
    ("FROM", lambda change: change["left"] or "-"),
    ("TO", lambda change: change["taken"] or "-"),
    ("NOTICED", lambda change: _or_none(change["detection"])),
    ("FIRST PACKET", lambda change: _or_none(change["first_packet"])),
    ("MEANWHILE", lambda change: _packets(change["packets_meanwhile"])),
    ("REASON", lambda change: change["reason"]),
)
_CERTIFICATE: tuple[_Column, ...] = (
    ("PEER", lambda peer: peer["certificate"]),
    ("AUTHORITY", lambda peer: peer["authority"]),
    ("EXPIRES", lambda peer: _moment(peer["expires"])),
    ("KEY AGREEMENT", lambda peer: peer["group"]),
    ("CIPHER", lambda peer: peer["cipher"]),
)
_UNITS = ("KiB", "MiB", "GiB", "TiB")


def text(status: Status) -> str:
    """Return the report on one service. A status of another shape raises what the access to it raises."""
    columns = (*_CLIENT, *_COMMON) if status["role"] == "client" else (_ENDPOINT, *_COMMON)
    return "\n".join(
        [
            f"{status['role']} (rvpn {status['version']}), up {duration(status['uptime'])}, "
            f"device {status['device']}, MTU {status['mtu']}"
            + (f", status {status['status']}" if "status" in status else ""),
            *(_section("clusters", map(_cluster, status["clusters"])) if "clusters" in status else []),
            *_section("sessions", _table(columns, status["sessions"])),
            *(_section("certificates", certificates) if (certificates := _certificates(status)) else []),
            "exchanges: " + ", ".join(f"{count:,} {state}" for state, count in status["exchanges"].items()),
            *(_section("failovers", _table(_FAILOVER, status["failovers"])) if "failovers" in status else []),
            *_section("offloads", aligned([[of, _offloads(how)] for of, how in status["offloads"].items()])),
            *_section("refusals", _counts(status["refusals"])),
            *_section("drops", _counts(status["drops"])),
        ]
    )


def _certificates(status: Status) -> list[str]:
    """Return a line for the own certificate and for that of each session that has one."""
    own = status["certificate"]
    shown = [session for session in status["sessions"] if session["authentication"]["mechanism"] == "tls"]
    lines = [f"own: {own['name']}, {_expires(own)} {_moment(own['expires'])}"] if own else []
    lines += [_revocation(state) for state in own["lists"]] if own else []
    return lines + _table(_CERTIFICATE, [session["authentication"] for session in shown])


def _expires(own: Status) -> str:
    return "EXPIRED on" if own["expired"] else "expires"


def _revocation(state: Status) -> str:
    of = f"authority {state['authority']}"
    if state["made"] is None:
        return f"{of}: no revocation list"
    number = "" if state["number"] is None else f" {state['number']}"
    until = "" if state["expires"] is None else f", to be replaced by {_moment(state['expires'])}"
    return f"{of}: {state['revoked']:,} revoked by list{number} of {_moment(state['made'])}{until}"


def _moment(seconds: float) -> str:
    """Write a time in seconds since 1970, in the zone of who asks."""
    return strftime("%Y-%m-%d %H:%M:%S", localtime(seconds))


def explained(status: Status) -> str:
    """Return the report, and with it what the policy promises of a failover and what was measured (R7)."""
    if status["role"] != "client":
        return text(status)
    lines = [*_section("promise", _promised(status["promise"])), *_measured(status["failovers"])]
    return "\n".join([text(status), *lines])


def _promised(promise: Status) -> Iterator[str]:
    """Say how soon a failed gateway is left (R7, X8), and another one used (R3, X1)."""
    if promise["mode"] == "NONE":
        yield "heartbeats are off (Heartbeat = NONE): no failure is noticed before the keys expire"
    elif promise["bound"] is None:
        yield "the heartbeats' times are auto, and nothing is measured while no gateway is in use"
    else:
        yield (
            f"a failed gateway is left within {_seconds(promise['bound'])} of its last packet: "
            f"{_seconds(promise['defer'])} of silence, then "
            f"2 heartbeats of {_seconds(promise['response'])} each"
        )
        yield _one_way(promise)
        if promise["mode"] == "DEFERRED":
            yield "the first heartbeat waits for a packet of yours (Heartbeat = DEFERRED)"
    if promise["switch"] is None:
        yield "there is no other gateway to go on with"
    elif promise["standby"]:
        yield f"then a standby is used at once (Standby = {promise['standby']})"
    else:
        yield (
            f"then another one is used within {_seconds(promise['switch'])}, if one lives: "
            "it has to give keys first (Standby = 0)"
        )


def _one_way(promise: Status) -> str:
    """Say what holds where only the way out is cut (X8)."""
    if promise["confirm_bound"] is None:
        return "if only the way to it is cut, never (HeartbeatConfirmTime = 0)"
    answer = (promise["confirm_bound"] - promise["confirm"]) / 2
    return (
        f"if only the way to it is cut, within {_seconds(promise['confirm_bound'])}: "
        f"{_seconds(promise['confirm'])} (HeartbeatConfirmTime), then 2 heartbeats of {_seconds(answer)} each"
    )


def _measured(failovers: Sequence[Status]) -> list[str]:
    """Tell what the gateways lost in this run took, as far as the journal goes back."""
    lost = [change for change in failovers if change["detection"] is not None]
    if not lost:
        return ["measured: no gateway was lost in this run"]
    times = {
        "noticed after {}": "detection",
        "another one in use after {} more": "switch",
        "its first packet after {}": "first_packet",
    }
    lines = [
        f"  {words.format(_range(known))}"
        for words, key in times.items()
        if (known := [change[key] for change in lost if change[key] is not None])
    ]
    return [f"measured: {counted(len(lost), 'gateway')} lost in this run", *lines]


def _range(times: Sequence[float]) -> str:
    """Write the shortest and the longest of these times."""
    fastest, slowest = _seconds(min(times)), _seconds(max(times))
    return fastest if fastest == slowest else f"{fastest} to {slowest}"


def _packets(count: int) -> str:
    return counted(count, "packet")


def _or_none(seconds: float | None) -> str:
    return "-" if seconds is None else _seconds(seconds)


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def duration(seconds: float) -> str:
    """Write a time in at most two units: 0.4s, 45s, 3m20s, 2h03m, 5d04h."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if not minutes:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}m{rest:02}s"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02}h" if days else f"{hours}h{minutes:02}m"


def size(count: int) -> str:
    """Write a number of bytes in the largest binary unit that leaves at least 1: 312 B, 1.2 MiB."""
    exponent = min((count.bit_length() - 1) // 10, len(_UNITS)) if count else 0
    return f"{count / (1 << 10 * exponent):.1f} {_UNITS[exponent - 1]}" if exponent else f"{count} B"


def _cluster(cluster: Status) -> str:
    used = f"in use {cluster['in_use']}" if cluster["in_use"] else "none in use"
    waiting = f", {_packets(cluster['waiting'])} waiting" if cluster["waiting"] else ""
    return f"{cluster['name']}: {used}, order {' '.join(cluster['order'])}{waiting}"


def _counts(counts: dict[str, int]) -> list[str]:
    return aligned([[what, f"{count:,}"] for what, count in counts.items() if count])


def _offloads(offloads: dict[str, str]) -> str:
    names: dict[str, list[str]] = {}
    for name, how in offloads.items():
        names.setdefault(how, []).append(name)
    return "; ".join(f"{', '.join(those)} {how}" for how, those in names.items())


def _section(title: str, lines: Iterable[str]) -> list[str]:
    """Return the indented lines under their title, or one line if there is nothing to tell."""
    indented = [f"  {line}" for line in lines]
    return [f"{title}:", *indented] if indented else [f"{title}: none"]


def _table(columns: Sequence[_Column], rows: Sequence[Status]) -> list[str]:
    titles = [title for title, _ in columns]
    return aligned([titles, *([cell(row) for _, cell in columns] for row in rows)]) if rows else []


def counted(number: int, noun: str) -> str:
    """Write how many of a thing there are: 1 packet, 1,234 packets."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, with the columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
