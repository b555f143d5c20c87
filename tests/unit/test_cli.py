"""The command line: what it prints, its exit codes, and one line for every mistake of the user."""

import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from rvpn import __version__
from rvpn.cli import report, service
from rvpn.errors import LocalError
from rvpn.failover.journal import Change
from rvpn.files import keyfile, policyfile
from rvpn.lab import holder, impair, sniffer, traffic
from tests.unit.commands import Outcome, run, rvpn

SESSION = {
    "peer": b64encode(bytes(32)).decode(),
    "gateway": "198.51.100.21",
    "endpoint": "198.51.100.21:4500",
    "transform": "aes-gcm-256",
    "trains": True,
    "inner_addresses": ["10.8.0.2"],
    "age": 7384.0,
    "key_age": 201.3,
    "idle": 0.4,
    "bytes_in": 1234567,
    "bytes_out": 512,
    "packets_in": 1034,
    "packets_out": 7,
    "in_use": True,
    "status": "ok",
    "authentication": {"mechanism": "noise", "group": "x25519", "cipher": "ChaCha20-Poly1305"},
}
STATUS = {
    "role": "client",
    "version": __version__,
    "uptime": 8000.0,
    "device": "rvpn0",
    "mtu": 1426,
    "certificate": None,
    "sessions": [SESSION],
    "clusters": [
        {
            "name": "1",
            "order": ["198.51.100.21", "198.51.100.22"],
            "in_use": "198.51.100.21",
            "waiting": 0,
        }
    ],
    "exchanges": {"running": 0, "established": 1, "failed": 2},
    "offloads": {"rvpn0": {"checksum": "in use", "TSO4": "in use", "USO4": "off"}, "[::]:4500": {}},
    "refusals": {"socket full": 1234},
    "drops": {"no-session": 12, "replayed": 0},
}
POLICY = """
[GENERAL]
Heartbeat = INSTANT
[IDENTITY]
PrivateKey = client.key
[PEERS]
143.1.0.64 = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
143.1.1.157 = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=
[CLUSTER]
Cluster 1 = 143.1.0.64 143.1.1.157
[TUNNEL]
Tunnel1 = 143.1.0.24 - 143.1.0.30 Cluster 1
[DEVICE]
InnerAddress = 10.8.0.2
"""


class ArgumentTests(SynchronousTestCase):
    """Arguments are explained when asked for and refused in one line when wrong."""

    def test_version(self) -> None:
        """`--version` names program and version."""
        self.assertEqual(rvpn("--version"), Outcome(0, f"rvpn {__version__}\n", ""))

    def test_help(self) -> None:
        """Every command explains itself, and the first page names all of them, `lab` too."""
        overview = rvpn("--help")
        for command in ("keygen", "pubkey", "pki", "policy", "status", "reload", "lab"):
            self.assertIn(f"\n    {command} ", overview.out)
            self.assertEqual(rvpn(command, "--help").code, 0)
        self.assertIn("exit code", rvpn("policy", "check", "--help").out)

    def test_wrong_arguments(self) -> None:
        """Wrong arguments: one line that names the fault and where help is, exit code 2."""
        for arguments, fault in (
            ((), "COMMAND"),
            (("dance",), "dance"),
            (("keygen",), "FILE"),
            (("policy",), "COMMAND"),
            (("policy", "check"), "FILE"),
            (("status", "--jso"), "--jso"),
            (("status", "--socket", "a", "--policy", "b"), "not allowed with"),
        ):
            outcome = rvpn(*arguments)
            self.assertEqual((outcome.code, outcome.out), (2, ""))
            self.assertRegex(outcome.err, r"\Arvpn.*: error: [^\n]*; rvpn.* --help tells more\n\Z")
            self.assertIn(fault, outcome.err)

    def test_wrong_arguments_for_the_lab(self) -> None:
        """So it is with the lab's commands, before they look for a lab, and with its tools."""
        for arguments, fault in (
            (("exec", "client"), "COMMAND"),
            (("up", "--gateways", "0"), "found '0', expected a whole number from 1 to 20"),
            (("impair", "--loss", "200"), "found '200', expected a number from 0 to 100"),
            (("impair", "--delay", "nan"), "found 'nan', expected a number of at least 0"),
            (("heartbeats", "--seconds", "-3"), "found '-3', expected a number from 1 to 3600"),
            (("failover", "--trials", "0"), "found '0', expected a whole number from 1 to 10000"),
            (("failover", "--standby", "16"), "found '16', expected a whole number from 0 to 15"),
            (("bench", "--peers", "foo"), "found 'foo', expected some of openvpn, wireguard-go"),
            (("bench", "--peers", "none"), "found 'none', expected some of openvpn, wireguard-go"),
            (("bench", "--rounds", "1.5"), "found '1.5', expected a whole number from 1 to 100"),
            (("bench", "--loss", "100"), "found '100', expected a number from 0 to 30"),
            (("bench", "--write", ""), "found '', expected the name of a directory"),
            (("failover", "--response", "nan"), "found 'nan', expected a number from 0.001 to 3600"),
        ):
            outcome = rvpn("lab", *arguments)
            self.assertEqual((outcome.code, outcome.out), (2, ""))
            self.assertRegex(outcome.err, r"\Arvpn lab [^\n]*; rvpn.* --help tells more\n\Z")
            self.assertIn(fault, outcome.err)
        for tool in traffic, holder, impair, sniffer:
            self.patch(sys, "argv", ["tool", "--dance"])
            outcome = run(tool.main)
            self.assertEqual((outcome.code, outcome.out), (2, ""))
            self.assertRegex(outcome.err, r"\Apython -m rvpn\.lab\.\w+: error: [^\n]* tells more\n\Z")

    def test_light_commands_leave_the_lab_alone(self) -> None:
        """`status` runs where pyroute2 and Twisted's reactor would only cost time and memory."""
        code = (
            "import sys; from rvpn.cli import main; main(['pubkey', '/nonexistent']); "
            "sys.exit(bool({'pyroute2', 'twisted.internet.reactor', 'rvpn.lab.command'} & set(sys.modules)))"
        )
        self.assertEqual(subprocess.run([sys.executable, "-c", code], capture_output=True).returncode, 0)


class EndTests(SynchronousTestCase):
    """Whatever ends a command ends it quietly."""

    def end(self, error: BaseException) -> Outcome:
        """Run a command in whose midst `error` is raised."""

        def fail(path: str) -> str:
            raise error

        self.patch(keyfile, "public_key", fail)
        return rvpn("pubkey", "file")

    def test_interrupt(self) -> None:
        """Ctrl-C: exit code 130 and not a word."""
        self.assertEqual(self.end(KeyboardInterrupt()), Outcome(130, "", ""))

    def test_full_disk(self) -> None:
        """An error of the machine is one line."""
        outcome = self.end(OSError(28, "No space left on device"))
        self.assertEqual(
            (outcome.code, outcome.err), (1, "rvpn: error: [Errno 28] No space left on device\n")
        )

    def test_closed_pipe(self) -> None:
        """A reader who has seen enough (`rvpn --help | head -1`) draws no traceback."""
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as out:
            ended = subprocess.run(
                [sys.executable, "-m", "rvpn", "pubkey", self.key()],
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
            )
        self.assertEqual((ended.returncode, ended.stderr), (141, ""))

    def key(self) -> str:
        """Make a key file."""
        path: str = self.mktemp()
        keyfile.create(path)
        return path


class KeyTests(SynchronousTestCase):
    """`keygen` and `pubkey`."""

    def test_keygen(self) -> None:
        """The public key is all that is printed, and `pubkey` prints the same."""
        path = self.mktemp()
        made = rvpn("keygen", path)
        self.assertEqual((made.code, made.err), (0, ""))
        self.assertRegex(made.out, r"\A[A-Za-z0-9+/]{43}=\n\Z")
        self.assertEqual(rvpn("pubkey", path), made)

    def test_keygen_again(self) -> None:
        """A second `keygen` on the same file is refused in one line."""
        path = self.mktemp()
        rvpn("keygen", path)
        again = rvpn("keygen", path)
        self.assertEqual((again.code, again.out), (1, ""))
        self.assertRegex(again.err, r"\Arvpn: error: [^\n]*exists already[^\n]*\n\Z")

    def test_preshared(self) -> None:
        """A preshared key has no public half to print."""
        path = self.mktemp()
        self.assertEqual(rvpn("keygen", "--preshared", path), Outcome(0, "", ""))
        self.assertEqual(len(keyfile.load(path)), 32)


class PolicyCheckTests(SynchronousTestCase):
    """`policy check` prints every diagnostic and then a summary."""

    def setUp(self) -> None:
        """Write a sound policy and its key."""
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.policy = str(self.directory / "client.ini")
        self.key = self.directory / "client.key"
        keyfile.create(str(self.key))
        Path(self.policy).write_text(POLICY)

    def test_sound(self) -> None:
        """A sound policy draws the summary alone."""
        self.assertEqual(
            rvpn("policy", "check", self.policy), Outcome(0, "1 file: 0 errors, 0 warnings\n", "")
        )

    def test_exposed_key(self) -> None:
        """A private key that others can read, found beside the policy, is a warning: exit code 0."""
        self.key.chmod(0o644)
        outcome = rvpn("policy", "check", self.policy)
        self.assertEqual(outcome.code, 0)
        self.assertRegex(outcome.out, rf"\A{self.policy}:5: warning: [^\n]*0644")
        self.assertTrue(outcome.out.endswith("1 file: 0 errors, 1 warning\n"))

    def test_missing_key(self) -> None:
        """A key file that is not there is a warning that says how to make it."""
        self.key.unlink()
        outcome = rvpn("policy", "check", self.policy)
        self.assertEqual(outcome.code, 0)
        self.assertIn("rvpn keygen", outcome.out)

    def test_errors(self) -> None:
        """Every file is read, unreadable ones too, and one error anywhere makes the exit code 1."""
        bad = str(self.directory / "bad.ini")
        Path(bad).write_bytes(b"[TUNNEL]\nTunnel1 = dog Cluster 1\nTunnel2 = \xff\n")
        outcome = rvpn("policy", "check", bad, self.policy, "/nonexistent.ini")
        self.assertEqual(outcome.code, 1)
        self.assertIn(f"{bad}:2: error: ", outcome.out)
        self.assertIn("/nonexistent.ini:1: error: cannot read this file", outcome.out)
        self.assertRegex(outcome.out, r"\n3 files: [0-9]+ errors, [0-9]+ warnings?\n\Z")

    def test_no_policy(self) -> None:
        """What is no plain file of a policy's size is refused at once, by the services' commands too."""
        fifo, huge = self.directory / "fifo", self.directory / "huge"
        os.mkfifo(fifo)
        with huge.open("wb") as file:
            file.truncate(policyfile.LONGEST_FILE + 1)
        for name, fault in (fifo, "found something that is not"), (huge, "found more than 16777216 bytes"):
            line = f"{name}:1: error: {fault}"
            self.assertIn(line, rvpn("policy", "check", str(name)).out)
            self.assertIn(line, rvpn("reload", "--policy", str(name)).err)


class ServiceTests(SynchronousTestCase):
    """`status` and `reload`, with an answer in the place of a service."""

    def answer(self, **answers: object) -> None:
        """Let sockets whose path is a keyword answer with its value, or raise it."""

        def ask(path: str, command: str, timeout: float) -> object:
            answer = answers[path]
            if isinstance(answer, Exception):
                raise answer
            return answer

        self.patch(service, "ask", ask)

    def test_revocation_lists(self) -> None:
        """The report says of each authority how many certificates are revoked, and by which list."""
        none = {"number": None, "made": None, "expires": None, "revoked": 0}
        lists = [
            {"authority": "CA", "number": 5, "made": 0.0, "expires": 86400.0, "revoked": 1},
            {"authority": "Other", **none},
        ]
        own = {"name": "gw1", "expires": 0.0, "expired": False, "lists": lists}
        text = report.text({**STATUS, "certificate": own})
        self.assertRegex(text, "authority CA: 1 revoked by list 5 of 19.*, to be replaced by 1970")
        self.assertIn("authority Other: no revocation list", text)

    def test_own_certificate(self) -> None:
        """The report says whether the own certificate has expired."""
        for expired, words in (False, "own: gw1, expires 19"), (True, "own: gw1, EXPIRED on 19"):
            own = {"name": "gw1", "expires": 0.0, "expired": expired, "lists": []}
            self.assertIn(words, report.text({**STATUS, "certificate": own}))

    def test_report(self) -> None:
        """The report names the gateway in use, traffic and drops; a counter of zero has no line."""
        self.answer(sock=STATUS)
        outcome = rvpn("status", "--socket", "sock")
        self.assertEqual((outcome.code, outcome.err), (0, ""))
        lines = outcome.out.splitlines()
        self.assertEqual(lines[0], f"client (rvpn {__version__}), up 2h13m, device rvpn0, MTU 1426")
        self.assertRegex(
            outcome.out,
            r"198\.51\.100\.21 +yes +ok +10\.8\.0\.2 +2h03m +3m21s +0\.4s +1,034 packets +1\.2 MiB",
        )
        self.assertIn("no-session  12", outcome.out)
        self.assertNotIn("replayed", outcome.out)

    def test_offloads(self) -> None:
        """What is in use stands together, and beside it what is not and why; refusals are counted."""
        text = report.text(STATUS)
        self.assertIn("\n  rvpn0      checksum, TSO4 in use; USO4 off\n", text)
        self.assertIn("\n  socket full  1,234\n", text)

    def test_status_of_gateways(self) -> None:
        """X4: the report tells what each gateway says of itself."""
        sessions = [{**SESSION, "status": status} for status in ("draining", "lan-down")]
        text = report.text({**STATUS, "sessions": sessions})
        for status in ("draining", "lan-down"):
            self.assertRegex(text, rf"198\.51\.100\.21 +yes +{status} ")

    def test_drain(self) -> None:
        """`drain` says how many clients it asks, and asks gateways alone, where none is named."""
        directory = self.mktemp()
        Path(directory).mkdir()
        self.patch(service, "DEFAULT_CONTROL_SOCKET", f"{directory}/{{role}}.sock")
        for role in ("client", "gateway"):
            Path(f"{directory}/{role}.sock").touch()
        self.answer(**{f"{directory}/gateway.sock": {"sessions": 1}})
        self.assertEqual(rvpn("drain"), Outcome(0, "draining: 1 client asked to move\n", ""))
        self.assertEqual(rvpn("undrain"), Outcome(0, "no longer draining\n", ""))
        self.answer(sock={"sessions": 1200})
        self.assertIn("1,200 clients asked", rvpn("drain", "--socket", "sock").out)
        Path(f"{directory}/gateway.sock").unlink()
        self.assertRegex(rvpn("drain").err, r"\Arvpn: error: no gateway runs here: [^\n]*\n\Z")

    def test_columns(self) -> None:
        """Values stand under their titles, whatever their lengths."""
        other = {**SESSION, "gateway": "2001:db8::1234:21", "in_use": False}
        table = report.text({**STATUS, "sessions": [SESSION, other]}).splitlines()
        titles = next(line for line in table if "GATEWAY" in line)
        rows = table[table.index(titles) + 1 :][:2]
        for title, value in (("INNER", "10.8.0.2"), ("PEER", "AAAA"), ("TRANSFORM", "aes")):
            for row in rows:
                self.assertEqual(row.index(value), titles.index(title))

    def test_between_keys(self) -> None:
        """A session that has lost its keys and waits for others says so."""
        session = {**SESSION, "key_age": None, "transform": None, "trains": False}
        self.assertRegex(report.text({**STATUS, "sessions": [session]}), r"2h03m +none +0\.4s .* none +no +A")

    def test_nothing_yet(self) -> None:
        """A gateway without sessions says none, and has no clusters to tell of."""
        status = {**STATUS, "role": "gateway", "sessions": [], "drops": {}}
        del status["clusters"]
        text = report.text(status)
        self.assertIn("sessions: none", text)
        self.assertIn("drops: none", text)
        self.assertNotIn("clusters", text)

    def test_json(self) -> None:
        """`--json` prints what the service said, on one line."""
        self.answer(sock=STATUS)
        outcome = rvpn("status", "--json", "--socket", "sock")
        self.assertEqual(outcome.out.count("\n"), 1)
        self.assertEqual(json.loads(outcome.out), STATUS)

    def test_reload(self) -> None:
        """`reload` says that it happened, or why not with exit code 1."""
        self.answer(good={"role": "client"}, bad=LocalError("client.ini has 2 errors"))
        self.assertEqual(rvpn("reload", "--socket", "good"), Outcome(0, "client: policy read again\n", ""))
        self.assertEqual(
            rvpn("reload", "--socket", "bad"), Outcome(1, "", "rvpn: error: client.ini has 2 errors\n")
        )

    def test_foreign_answer(self) -> None:
        """An answer of another shape is one line, not a traceback."""
        for answer in (
            {},
            {**STATUS, "sessions": [{}]},
            {**STATUS, "drops": 7},
            {**STATUS, "uptime": "long"},
        ):
            self.answer(sock=answer)
            outcome = rvpn("status", "--socket", "sock")
            self.assertEqual((outcome.code, outcome.out), (1, ""))
            self.assertEqual(outcome.err.count("\n"), 1)

    def test_default_sockets(self) -> None:
        """Without arguments every service with a socket is asked; one that died does not hide the other."""
        directory = self.mktemp()
        Path(directory).mkdir()
        self.patch(service, "DEFAULT_CONTROL_SOCKET", f"{directory}/{{role}}.sock")
        none = rvpn("status")
        self.assertEqual(none.code, 1)
        self.assertRegex(none.err, r"\Arvpn: error: no client or gateway runs here: [^\n]*\n\Z")
        for role in ("client", "gateway"):
            Path(f"{directory}/{role}.sock").touch()
        self.answer(
            **{
                f"{directory}/client.sock": LocalError("has the service died?"),
                f"{directory}/gateway.sock": STATUS,
            }
        )
        both = rvpn("status", "--json")
        self.assertEqual(both.code, 1)
        self.assertEqual(json.loads(both.out), STATUS)
        self.assertIn("has the service died?", both.err)

    def test_socket_of_a_policy(self) -> None:
        """`--policy` asks the socket that the policy names; a bad policy is a line for each error."""
        path = self.mktemp()
        Path(path).write_text(POLICY + "[CONTROL]\nSocket = /run/elsewhere.sock\n")
        self.answer(**{"/run/elsewhere.sock": STATUS})
        self.assertEqual(json.loads(rvpn("status", "--json", "--policy", path).out), STATUS)
        Path(path).write_text("[TUNNEL]\nTunnel1 = dog\nTunnel2 = cat\n")
        outcome = rvpn("status", "--policy", path)
        self.assertEqual((outcome.code, outcome.out), (1, ""))
        self.assertRegex(outcome.err, rf"\A(rvpn: error: {path}:[0-9]+: error: [^\n]+\n)+\Z")


class ExplainTests(SynchronousTestCase):
    """`status --explain`: what the policy promises of a failover, and what was measured."""

    promise: ClassVar[dict[str, object]] = {
        "mode": "INSTANT",
        "defer": 0.1,
        "response": 0.05,
        "bound": 0.2,
        "confirm": 10.0,
        "confirm_bound": 10.1,
        "standby": 1,
        "switch": 0.0,
    }

    def explained(self, failovers: Iterable[Change] = (), **promise: object) -> str:
        """Return what is said of a promise with these values."""
        journal = [asdict(change) for change in failovers]
        return report.explained({**STATUS, "promise": self.promise | promise, "failovers": journal})

    def test_bounds(self) -> None:
        """R7, X8: silence, and what holds where only the way out is cut; then the switch (X1)."""
        text = self.explained()
        for words in (
            "left within 200 ms of its last packet: 100 ms of silence, then 2 heartbeats of 50 ms each",
            "is cut, within 10.10 s: 10.00 s (HeartbeatConfirmTime), then 2 heartbeats of 50 ms",
            "then a standby is used at once",
            "measured: no gateway was lost",
        ):
            self.assertIn(words, text)

    def test_other_policies(self) -> None:
        """Each setting that makes a difference is told in words of its own."""
        for promise, words in (
            ({"mode": "NONE"}, "heartbeats are off"),
            ({"mode": "DEFERRED"}, "waits for a packet of yours"),
            ({"defer": None, "response": None, "bound": None}, "nothing is measured"),
            ({"confirm": 0.0, "confirm_bound": None}, "HeartbeatConfirmTime = 0"),
            ({"standby": 0, "switch": 4.0}, "another one is used within 4.00 s, if one lives"),
            ({"switch": None}, "no other gateway"),
        ):
            self.assertIn(words, self.explained(**promise))
        self.assertNotIn("0 ms", self.explained(defer=None, response=None, bound=None, switch=None))

    def test_measured(self) -> None:
        """Of the gateways that were lost: detection, switch and first packet; others are not counted."""
        lost = Change(1.0, "1", "a", "b", "two heartbeats", detection=0.15, switch=0.0, first_packet=0.03)
        slow = replace(lost, detection=0.2, switch=1.5, first_packet=None)
        moved = replace(lost, detection=None, first_packet=9.0)
        lines = self.explained([lost, slow, moved]).splitlines()
        measured = lines[lines.index("measured: 2 gateways lost in this run") + 1 :]
        self.assertEqual(
            [line.strip() for line in measured],
            [
                "noticed after 150 ms to 200 ms",
                "another one in use after 0 ms to 1.50 s more",
                "its first packet after 30 ms",
            ],
        )


class UnitTests(SynchronousTestCase):
    """Times and sizes are written for people."""

    def test_durations(self) -> None:
        """At most two units, none of them a fraction beyond ten seconds."""
        for seconds, text in (
            (0, "0.0s"),
            (9.94, "9.9s"),
            (10, "10s"),
            (59.9, "59s"),
            (60, "1m00s"),
            (3600, "1h00m"),
        ):
            self.assertEqual(report.duration(seconds), text)
        self.assertEqual(report.duration(5 * 86400 + 4 * 3600 + 59), "5d04h")

    def test_sizes(self) -> None:
        """The largest unit that leaves at least 1."""
        for count, text in (
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1 << 20, "1.0 MiB"),
            (3 << 49, "1536.0 TiB"),
        ):
            self.assertEqual(report.size(count), text)
