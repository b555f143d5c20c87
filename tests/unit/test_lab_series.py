"""What is made of trials of failover: figures, and whether a promise was kept."""

import json
import re
from dataclasses import replace
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rvpn.constants import HeartbeatMode
from rvpn.lab.faults import FAULTS as KNOWN
from rvpn.lab.series import ALL_DEAD, FAULTS, ONE_EXCHANGE, TOLERANCE, Series, Terms, Trial
from rvpn.lab.trials_command import rows, together

ROOT = Path(__file__).resolve().parents[2]
TRIAL = Trial(
    at=1.0,
    left="gateway1",
    taken="gateway2",
    bound=0.2,
    outage=0.21,
    pings_lost=42,
    stall=0.3,
    disturbance=0.01,
    inbound=0,
    false_moves=0,
    bytes_verified=1000,
    bytes_wrong=0,
    tcp_broken=0,
)


def series(*trials: Trial, fault: str = "kill", terms: Terms | None = None) -> Series:
    """Return a series of these trials."""
    return Series(fault, terms or Terms(), 4, trials)


class PromiseTests(SynchronousTestCase):
    """`Series.passed`."""

    def test_kept(self) -> None:
        """Outages may last as long as promised at their time, and a little longer."""
        self.assertTrue(series(TRIAL).passed)
        late = replace(TRIAL, outage=TRIAL.bound + TOLERANCE + 0.001)
        self.assertFalse(series(TRIAL, late).passed)
        self.assertTrue(series(TRIAL, replace(late, bound=0.3)).passed)

    def test_one_in_twenty(self) -> None:
        """One of twenty may be longer, two not."""
        late = replace(TRIAL, outage=1.0)
        self.assertTrue(series(*[TRIAL] * 19, late).passed)
        self.assertFalse(series(*[TRIAL] * 18, late, late).passed)

    def test_without_standby(self) -> None:
        """Without a standby there is one exchange more."""
        slower = replace(TRIAL, outage=TRIAL.bound + TOLERANCE + ONE_EXCHANGE)
        self.assertTrue(series(slower, terms=Terms(standby=0)).passed)
        self.assertFalse(series(slower).passed)

    def test_harm(self) -> None:
        """No connection may break, and no byte be wrong."""
        self.assertFalse(series(replace(TRIAL, tcp_broken=1)).passed)
        self.assertFalse(series(replace(TRIAL, bytes_wrong=1)).passed)

    def test_drain(self) -> None:
        """A drained gateway must be left, and cost no packet."""
        quiet = replace(TRIAL, outage=0.0, pings_lost=0)
        self.assertTrue(series(quiet, fault="drain").passed)
        self.assertFalse(series(replace(quiet, pings_lost=1), fault="drain").passed)
        self.assertFalse(series(replace(quiet, taken="gateway1"), fault="drain").passed)


class FiguresTests(SynchronousTestCase):
    """The JSON of `rvpn lab failover`."""

    def test_figures(self) -> None:
        """What happened in each trial is summed up, and fits JSON."""
        auto = Terms(2, HeartbeatMode.DEFERRED, None, None)
        stayed = replace(TRIAL, taken="gateway1", outage=0.01, pings_lost=1)
        figures = json.loads(json.dumps(series(TRIAL, stayed, terms=auto).figures()))
        self.assertEqual((figures["trials"], figures["moves"], figures["pings_lost"]), (2, 1, 43))
        self.assertEqual((figures["standby"], figures["heartbeat"]), (2, "DEFERRED"))
        self.assertEqual((figures["defer_s"], figures["response_s"]), ("auto", "auto"))
        self.assertEqual(figures["outage_s"], {"min": 0.01, "median": 0.11, "p95": 0.21, "max": 0.21})
        self.assertEqual(figures["beyond_bound_s"]["max"], 0.01)

    def test_table(self) -> None:
        """The table shows what is judged: a long outage passes where as much was promised at its time."""
        slow = replace(TRIAL, bound=1.0, outage=0.9)
        quick = [replace(TRIAL, bound=0.045, outage=0.04)] * 2
        heading, row = (dict(enumerate(cells)) for cells in rows([series(slow, *quick)]))
        cells = {heading[column]: row[column] for column in row}
        self.assertEqual((cells["PROMISED"], cells["P95"], cells["BEYOND"]), ("45 ms", "900 ms", "-5 ms"))
        self.assertTrue(series(slow, *quick).passed)

    def test_together(self) -> None:
        """Several faults are one object as well, with what was most and what was all."""
        cut = series(replace(TRIAL, bound=0.7, outage=0.5, tcp_broken=1), fault="cut-to-gateway")
        figures = together([series(TRIAL), cut])
        self.assertEqual((figures["fault"], figures["trials"], figures["bound_s"]), ("all", 2, 0.7))
        self.assertEqual((figures["outage_s"]["max"], figures["tcp_broken"]), (0.5, 1))
        self.assertEqual([each["fault"] for each in figures["series"]], ["kill", "cut-to-gateway"])

    def test_documented(self) -> None:
        """The page names exactly the keys that there are."""
        page = (ROOT / "docs" / "failover.md").read_text()
        table = page.split("## The JSON")[1].split("\n## ")[0]
        named = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\|(.*?)\|", table, re.MULTILINE))))
        self.assertEqual(named, {*series(TRIAL).figures(), "series"})


class FaultNameTests(SynchronousTestCase):
    """The names of faults."""

    def test_known(self) -> None:
        """What a series is about can be inflicted by hand as well, and undone if it lasts."""
        self.assertEqual(set(FAULTS) - set(KNOWN), {ALL_DEAD})
        for name, fault in KNOWN.items():
            self.assertIn(fault.undo, {None, *KNOWN}, name)
