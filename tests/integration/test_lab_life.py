"""How laboratories end: by themselves, by their owner's death, by anybody's; nothing is ever left."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rvpn.cli.control_socket import ask
from rvpn.errors import LocalError
from rvpn.lab import holder, requirements, wire
from rvpn.lab.faults import FAULTS
from rvpn.lab.lab import Lab
from tests.integration.lab_case import LabTestCase

PATIENCE = 10.0
#: A process that owns a laboratory with a service in it, says where it is, and waits. Ctrl-C reaches it even
#: where these tests were started in the background of a shell, which has its commands ignore SIGINT.
OWNER = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from rvpn.lab.faults import FAULTS
from rvpn.lab.lab import Lab
with Lab.start() as lab:
    lab.spawn("client", ["sleep", "600"], name="client").close()
    lab.spawn("target1", ["sh", "-c", "trap '' TERM INT HUP; sleep 600 & wait"], name="stubborn").close()
    print(lab.directory, flush=True)
    time.sleep(600)
"""


def members(kind: str, namespace: str) -> list[int]:
    """Return the processes, as this process sees them, that are in a namespace."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str((entry / "ns" / kind).readlink()) == namespace:
                found.append(int(entry.name))
        except OSError:
            continue  # ended, or not ours
    return found


class LifeTests(LabTestCase):
    """Each end is looked at from outside, by the namespaces of the holder."""

    def setUp(self) -> None:
        self.mounts = Path("/proc/self/mounts").read_text()

    def observe(self, directory: Path) -> int:
        """Remember the laboratory's namespaces and return the PID of its holder."""
        with wire.connect(directory / holder.SOCKET) as connection:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = int.from_bytes(credentials[:4], sys.byteorder)
        self.namespaces = {
            kind: str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in ("pid", "net", "mnt")
        }
        self.processes = members("pid", self.namespaces["pid"])
        self.assertIn(pid, self.processes)
        return pid

    def assertGone(self) -> None:
        """Assert that soon no process is in any of the namespaces, and that nothing is mounted here."""
        deadline = time.monotonic() + PATIENCE
        while left := [pid for kind, name in self.namespaces.items() for pid in members(kind, name)]:
            self.assertLess(time.monotonic(), deadline, f"left: {left}")
            time.sleep(0.01)
        self.assertEqual([pid for pid in self.processes if Path(f"/proc/{pid}").exists()], [])
        self.assertEqual(Path("/proc/self/mounts").read_text(), self.mounts)

    def start_owner(self) -> tuple["subprocess.Popen[str]", Path]:
        """Start a process with a laboratory; return it and the laboratory's directory."""
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.addCleanup(owner.wait)
        self.addCleanup(owner.kill)
        assert owner.stdout is not None
        self.addCleanup(owner.stdout.close)
        return owner, Path(owner.stdout.readline().strip())

    def test_close(self) -> None:
        """Closed, a laboratory is gone at once, with its directory."""
        with Lab.start() as lab:
            self.observe(lab.directory)
        self.assertEqual(members("pid", self.namespaces["pid"]), [])
        self.assertFalse(lab.directory.exists())
        self.assertGone()

    def test_error(self) -> None:
        """An error in the body ends it too."""

        def fail(lab: Lab) -> None:
            with lab:
                self.observe(lab.directory)
                raise ZeroDivisionError

        self.assertRaises(ZeroDivisionError, fail, Lab.start())
        self.assertGone()

    def test_holder_killed(self) -> None:
        """SIGKILL of the holder ends everything; whoever asks it then is told."""
        lab = self.start_lab()
        process = lab.spawn("client", ["sleep", "600"])
        os.kill(self.observe(lab.directory), signal.SIGKILL)
        self.assertGone()
        self.assertRaises(LocalError, process.wait, PATIENCE)
        self.assertRaises(LocalError, lab.status)
        process.close()

    def test_parent_killed(self) -> None:
        """SIGKILL of the holder's parent, `unshare`, ends everything."""
        lab = self.start_lab()
        pid = self.observe(lab.directory)
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        self.assertGone()

    def test_owner_killed(self) -> None:
        """SIGKILL of its owner ends a laboratory and its directory, stubborn processes too."""
        owner, directory = self.start_owner()
        self.observe(directory)
        self.assertGreaterEqual(len(self.processes), 3)
        owner.kill()
        self.assertGone()
        self.assertFalse(directory.exists())

    def test_owner_killed_early(self) -> None:
        """A laboratory whose owner died before it was ready removes its directory."""
        directory = Path(tempfile.mkdtemp(prefix="rvpn-lab-"))
        readable, writable = os.pipe()
        os.close(readable)
        argv = [*requirements.unshare_command(), sys.executable, "-m", "rvpn.lab.holder", str(directory)]
        subprocess.run(
            [*argv, "4", "1", "1", "--temporary"],
            input=b"",
            stdout=writable,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE,
            check=False,
        )
        os.close(writable)
        self.assertFalse(directory.exists())

    def test_interrupted(self) -> None:
        """Ctrl-C at the process that owns it ends everything and removes the directory."""
        owner, directory = self.start_owner()
        self.observe(directory)
        os.killpg(owner.pid, signal.SIGINT)
        owner.wait(PATIENCE)
        self.assertGone()
        self.assertFalse(directory.exists())

    def test_cannot_start(self) -> None:
        """A holder that fails is reported with its last words, and leaves nothing."""
        before = set(Path(tempfile.gettempdir()).glob("rvpn-lab-*"))
        self.patch(requirements, "unshare_command", lambda: ("sh", "-c", "echo no luck today >&2; exit 1"))
        given = Path(self.mktemp())
        given.mkdir()
        for directory in None, given:
            with self.assertRaisesRegex(LocalError, "no luck today"):
                Lab.start(directory=directory)
        self.assertFalse(given.exists())
        self.assertEqual(set(Path(tempfile.gettempdir()).glob("rvpn-lab-*")), before)


class RequirementTests(LabTestCase):
    """What is missing is said in plain words, with what to do about it."""

    skip = None

    def setUp(self) -> None:
        requirements.missing.cache_clear()
        self.addCleanup(requirements.missing.cache_clear)

    def test_no_tun(self) -> None:
        """A missing device is named, with how to get it."""
        self.patch(requirements, "TUN", Path("/nonexistent/tun"))
        self.assertIn(
            "There is no /nonexistent/tun. Load its driver: modprobe tun.", " ".join(requirements.missing())
        )

    def test_no_unshare(self) -> None:
        """A missing program is named, with its package."""
        self.patch(os, "environ", {"PATH": "/nonexistent"})
        self.assertIn("apt-get install util-linux", " ".join(requirements.missing()))

    def test_not_permitted(self) -> None:
        """If namespaces are not permitted, the kernel's word for it comes with the remedy."""
        refusal = "echo unshare failed: Operation not permitted >&2; exit 1"
        self.patch(requirements, "unshare_command", lambda: ("sh", "-c", refusal))
        sentences = " ".join(requirements.missing())
        self.assertIn("unshare failed: Operation not permitted", sentences)
        self.assertTrue("CAP_SYS_ADMIN" in sentences or "Run it as root" in sentences)


class CommandTests(LabTestCase):
    """`rvpn lab`, each command in a process of its own, in a directory apart from the user's own lab."""

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.environment = {**os.environ, "TMPDIR": temporary.name}
        self.directory = Path(temporary.name, f"rvpn-lab-{os.getuid()}")
        self.addCleanup(self.rvpn, "down")

    def rvpn(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "rvpn", "lab", *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def test_life(self) -> None:
        """Up, status, exec, fault, impair, down: each does what it says and no more."""
        up = self.rvpn("up", "--bare", "--family", "6", "--gateways", "2", "--targets", "1")
        self.assertEqual((up.returncode, up.stderr), (0, ""))
        self.assertEqual(self.directory.stat().st_mode & 0o777, 0o700)
        again = self.rvpn("up", "--bare")
        self.assertEqual((again.returncode, again.stdout), (1, ""))
        self.assertIn("a laboratory is running already", again.stderr)

        self.assertEqual(self.rvpn("fault", "cut", "gateway2").returncode, 0)
        status = json.loads(self.rvpn("status", "--json").stdout)
        self.assertEqual(status["topology"], {"family": 6, "gateways": 2, "targets": 1, "proxy_arp": True})
        self.assertEqual(status["network"]["cut"], ["gateway2 back", "gateway2 out"])
        told = self.rvpn("status").stdout
        self.assertIn("2001:db8:0:22::1", told)
        self.assertIn("gateway2: the path to the client is cut\n", told)
        self.assertEqual(self.rvpn("impair", "--delay", "30", "--mtu", "1300", "--nat").returncode, 0)

        ping = [sys.executable, "-m", "rvpn.lab.traffic", "ping", "--count", "2"]
        answer = json.loads(self.rvpn("exec", "client", *ping, "2001:db8:0:21::1").stdout)
        self.assertEqual(answer["lost"], 0)
        self.assertGreaterEqual(answer["rtt"]["min"], 60)

        down = self.rvpn("down")
        self.assertEqual((down.returncode, down.stdout, down.stderr), (0, "", ""))
        self.assertFalse(self.directory.exists())
        self.assertEqual(self.rvpn("down").returncode, 1)

    def test_fails_over(self) -> None:
        """The client of `up` leaves a gateway that is killed by hand, though nobody sends anything."""
        up = self.rvpn("up", "--gateways", "2", "--targets", "1")
        self.assertEqual((up.returncode, up.stderr), (0, ""))
        self.assertIn(f"--socket {self.directory}/client.sock", up.stdout)
        self.rvpn("fault", "kill", "gateway1")
        deadline = time.monotonic() + PATIENCE
        sessions: list[dict[str, Any]] = []
        while not any(s["in_use"] and s["gateway"] == "198.51.100.22" for s in sessions):
            self.assertLess(time.monotonic(), deadline, sessions)
            time.sleep(0.1)
            sessions = ask(f"{self.directory}/client.sock", "status")["sessions"]

    def test_exec(self) -> None:
        """A command has the caller's input, output, directory and environment; its exit code is passed on."""
        self.rvpn("up", "--bare", "--gateways", "1", "--targets", "1")
        self.environment["FRUIT"] = "pear"
        done = self.rvpn(
            "exec", "target1", "sh", "-c", "cat; echo $FRUIT; pwd; echo oh >&2; exit 3", stdin="in\n"
        )
        self.assertEqual((done.returncode, done.stderr), (3, "oh\n"))
        self.assertEqual(done.stdout, f"in\npear\n{Path.cwd()}\n")
        self.assertEqual(self.rvpn("exec", "client", "sh", "-c", "kill -TERM $$").returncode, 128 + 15)

    def test_mistakes(self) -> None:
        """Wrong arguments get one line, and exit code 1 or 2."""
        self.rvpn("up", "--bare", "--gateways", "1", "--targets", "1")
        for arguments, words, code in (
            (("exec", "nowhere", "true"), "no node nowhere", 1),
            (("exec", "client", "nosuchcommand"), "nosuchcommand: ", 1),
            (("fault", "kill", "gateway7"), "no gateway gateway7", 1),
            (("fault", "kill", "gateway1"), "gateway1 is not running", 1),
            (("fault", "bore", "gateway1"), "invalid choice: 'bore'", 2),
            (("exec", "client"), "required: COMMAND", 2),
            (("impair", "--loss", "101"), "--loss: found '101', expected a number from 0 to 100", 2),
            (("up", "--gateways", "21"), "--gateways: found '21', expected a whole number from 1 to 20", 2),
        ):
            done = self.rvpn(*arguments)
            self.assertEqual((done.returncode, done.stdout), (code, ""), done)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            self.assertIn(words, done.stderr)

    def test_documented(self) -> None:
        """The lab's page names every fault and every option of `impair`."""
        page = (Path(__file__).parents[2] / "docs" / "lab.md").read_text()
        options = set(re.findall(r"--[a-z]+", self.rvpn("impair", "--help").stdout)) - {"--help"}
        for name in (*FAULTS, *options):
            self.assertIn(f"`{name}", page)

    def test_nothing_runs(self) -> None:
        """Without a laboratory, commands say how to start one."""
        for arguments in (("status",), ("exec", "client", "true"), ("fault", "cut", "gateway1"), ("down",)):
            done = self.rvpn(*arguments)
            self.assertEqual(done.returncode, 1)
            self.assertEqual(
                done.stderr, "rvpn: error: no laboratory is running; start one with: rvpn lab up\n"
            )

    def test_somebody_elses_directory(self) -> None:
        """A directory that is a link is not followed."""
        self.directory.symlink_to(self.environment["TMPDIR"])
        done = self.rvpn("up", "--bare")
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"{self.directory}: cannot make this directory", done.stderr)
        self.directory.unlink()
