"""
The demonstration's report: one HTML file that needs nothing else, light or dark as the reader's system.

    Story, what passed before it -> `page` -> text of the file
"""

import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rvpn import __version__
from rvpn.lab.chart import BIN, NARROW, close_up, overview
from rvpn.lab.story import Sort, Story

_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #16202c; --soft: #5b6878; --grid: #e3e8ee; --card: #f5f7fa;
  --bad: #c62f3b; --tint: #c62f3b1f; --good: #1c7c4a; --data: #2d5fa8;
  --gateway1: #2d5fa8; --gateway2: #b3620e; --gateway3: #0f7b74;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #10161e; --ink: #e6ebf1; --soft: #97a4b4; --grid: #26313d; --card: #18212c;
    --bad: #ff7b80; --tint: #ff7b8038; --good: #5fcf94; --data: #7db0f5;
    --gateway1: #3d74c4; --gateway2: #b8690f; --gateway3: #12857d;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 64rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; }
p { max-width: 46rem; }
.lead, footer { color: var(--soft); }
.lead { margin: 0 0 1.6rem; }
footer { margin-top: 3rem; font-size: .9rem; }
code { font-family: ui-monospace, monospace; font-size: .9em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); gap: .8rem; }
.tile { background: var(--card); border-radius: .6rem; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.6rem; line-height: 1.2; }
.tile span { color: var(--soft); font-size: .9rem; }
.tile b, table, time, .label { font-variant-numeric: tabular-nums; }
figure { margin: 0; }
svg { width: 100%; height: auto; display: block; font: 12px system-ui, sans-serif; }
.narrow { display: none; }
@media (max-width: 46rem) { .narrow { display: block; } .broad { display: none; } }
.closer { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
.closer figure { background: var(--card); border-radius: .6rem; padding: .6rem; }

svg text { fill: var(--ink); }
svg .label, svg .note { fill: var(--soft); font-size: 11.5px; }
svg .title, svg .mark, svg .on-colour { font-weight: 600; }
svg .on-colour { fill: #ffffff; }
svg .fault-words { fill: var(--bad); }
svg .event-words { fill: var(--good); }
svg .use { rx: 4px; }
svg .grid { stroke: var(--grid); }
svg .axis { stroke: var(--soft); }
svg .outage { fill: var(--tint); }
svg .fault, svg .event { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .event, svg .switch { stroke: var(--good); }
svg .switch { stroke-width: 1.5; }
svg .area { fill: var(--data); opacity: .8; }
svg .ping, svg .lost, svg .beyond { fill: none; stroke: var(--data); stroke-linecap: round; stroke-width: 3; }
svg .lost { stroke: var(--bad); stroke-width: 4; }
svg .beyond { stroke-linecap: square; }
ol.line, ul.checks { list-style: none; margin: 0; padding: 0; }
ol.line li { display: grid; grid-template-columns: 5.5rem 1fr; gap: 1rem; padding: .25rem 0; }
ol.line time { color: var(--soft); text-align: right; }
ol.line .fault, ol.line .switch, ul.checks .bad { color: var(--bad); font-weight: 600; }
ol.line .switch { color: var(--good); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: left; white-space: nowrap; padding: .35rem .8rem .35rem 0; }
th, td { border-bottom: 1px solid var(--grid); }
th { color: var(--soft); font-weight: 600; }
"""

Rows = Iterable[Sequence[object]]


def page(family: int, story: Story, visits: Rows, links: Rows, checks: Iterable[tuple[bool, str]]) -> str:
    """
    Return the report. `visits` and `links` are tables with a heading each, `checks` what held and what not.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>rvpn: gateways die, connections live</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Gateways die, connections live</h1>
<p class="lead">One client, three gateways, three targets in network namespaces on one machine; real
services, real packets. The policy promises that a silent gateway is left within
{story.bound * 1e3:.0f} ms.</p>
{_tiles(story)}
<h2>What happened</h2>
<figure class="broad">{overview(story)}</figure>
<figure class="narrow">{overview(story, NARROW)}</figure>
<p class="lead">Throughput in steps of {BIN * 1e3:.0f} ms, each ping by itself. All of it shares the
{os.cpu_count()} processors of one machine: a gateway that starts keeps pings waiting.</p>
<h2>Each ping around the failures</h2>
<p>One ping every 5 ms. A blue dot is a ping with its round-trip time in milliseconds, at the time when it was
sent; a red one below the axis was never answered. In the red band no answer came.</p>
<div class="closer">{_close_ups(story)}</div>
<h2>Time line</h2>
<ol class="line">{_line(story)}</ol>
<h2>The client's own journal</h2>
{_table(journal(story))}
<h2>Before that: each target, over IPv4 and IPv6</h2>
{_table(visits)}
<h2>What passed on the links meanwhile, by captures</h2>
{_table(links)}
<h2>Checks</h2>
<ul class="checks">{_checks(checks)}</ul>
<footer>{_origin(family)}. Pings and TCP were measured at the client, outside the product. Again:
<code>rvpn lab demo</code>. Failures of every kind, many times:
<code>rvpn lab failover --fault all</code>.</footer>
</body>
</html>
"""


def _origin(family: int) -> str:
    """Tell what was measured when, and on what."""
    when = time.strftime("%Y-%m-%d %H:%M")
    machine = f"Linux {platform.release()}, Python {platform.python_version()}"
    return escape(f"rvpn {__version__}, IPv{family} outside, {when}, {machine}")


def _tiles(story: Story) -> str:
    longest = max((outage.length for outage in story.outages), default=0.0)
    final = story.progress[-1]
    lost = story.pings - len(story.replies)
    tiles = (
        (f"{longest * 1e3:.0f} ms", "longest time without an answer"),
        (str(final.broken), "TCP connections broken"),
        (f"{final.verified / 1e6:.1f} MB", f"sent and returned; {final.wrong} bytes wrong"),
        (f"{lost} of {story.pings:,}", "pings lost"),
    )
    inside = "".join(f'<div class="tile"><b>{escape(b)}</b><span>{escape(s)}</span></div>' for b, s in tiles)
    return f'<div class="tiles">{inside}</div>'


def _close_ups(story: Story) -> str:
    return "".join(f"<figure>{close_up(story, outage)}</figure>" for outage in story.outages)


def _line(story: Story) -> str:
    styles = {Sort.FAULT: "fault", Sort.SWITCH: "switch"}
    return "".join(
        f'<li><time>{moment.at:.3f} s</time><span class="{styles.get(moment.sort, "")}">'
        f"{escape(moment.words)}</span></li>"
        for moment in story.moments
    )


def journal(story: Story) -> Rows:
    """Yield the rows of the client's own journal."""
    yield "From", "To", "Noticed", "First packet", "Reason"
    for change in story.journal:
        yield (
            change["left"] or "-",
            change["taken"] or "-",
            _milliseconds(change, "detection"),
            _milliseconds(change, "first_packet"),
            change["reason"],
        )


def _milliseconds(change: Mapping[str, Any], key: str) -> str:
    return "-" if change[key] is None else f"{change[key] * 1e3:.0f} ms"


def _table(rows: Rows) -> str:
    heading, *others = rows
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in heading)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in others)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _checks(checks: Iterable[tuple[bool, str]]) -> str:
    lines = (("", "✓", words) if good else ("bad", "✗", words) for good, words in checks)
    return "".join(f'<li class="{style}">{sign} {escape(words)}</li>' for style, sign, words in lines)
