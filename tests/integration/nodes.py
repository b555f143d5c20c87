"""
A client, a gateway and a target for tests: three network namespaces, and the real services under twistd.

    client (`here`)             gateway                        target
    outside 192.0.2.1 --------- outside 192.0.2.2
            2001:db8::1                 2001:db8::2
                                lan 10.0.0.21 ---------------- lan 10.0.0.1
                                    fd00:10::21                    fd00:10::1

The client's inner addresses are 10.99.0.1 and fd00:99::1. A test changes `Node.policy` before it calls
`Node.start`.
"""

import contextlib
import io
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from rvpn import cli
from rvpn.cli.control_socket import ask
from rvpn.errors import LocalError
from rvpn.files import keyfile
from rvpn.lab.namespaces import inside
from rvpn.lab.traffic import Pinger
from tests.integration.namespaces import Namespace, NamespaceTestCase, Snapshot, snapshot

TWISTD = str(Path(sys.executable).parent / "twistd")
INNER, TARGET = "10.99.0.1", "10.0.0.1"
INNER6, TARGET6 = "fd00:99::1", "fd00:10::1"
#: Seconds for a start on a busy machine.
PATIENCE = 15.0

Policy = dict[str, dict[str, str]]


def wait_until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Return once `condition` holds. Raises AssertionError if it does not in time."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience:g} s in vain: {what}")
        time.sleep(0.01)


class Node:
    """A service in a namespace: its key, its policy by section and keyword, its process."""

    def __init__(self, case: TestCase, role: str, namespace: Namespace, directory: Path) -> None:
        self.role = role
        self.namespace = namespace
        self.directory = directory
        directory.mkdir()
        self.public_key = keyfile.create(str(directory / "node.key"))
        self.policy: Policy = {
            "IDENTITY": {"PrivateKey": "node.key"},
            "CONTROL": {"Socket": "node.sock", "StateDirectory": "node.state"},
        }
        self.file = directory / "node.policy"
        self.socket = directory / "node.sock"
        self._process: subprocess.Popen[bytes] | None = None
        case.addCleanup(self.kill)

    def write_policy(self) -> Path:
        """Write the policy to its file."""
        sections = (
            "\n".join([f"[{title}]", *(f"{key} = {value}" for key, value in keys.items())])
            for title, keys in self.policy.items()
        )
        self.file.write_text("\n".join(sections) + "\n")
        return self.file

    def spawn(self, *options: str) -> None:
        """Start the service in the foreground, with the rights that etc/rvpn@.service gives it."""
        with (self.directory / "log").open("ab") as log:
            self._process = self.run(
                *("setpriv", "--pdeathsig=KILL", "--bounding-set=-all,+net_admin,+net_raw"),
                *(TWISTD, "--nodaemon", "--pidfile="),
                *(f"rvpn-{self.role}", "--policy", str(self.write_policy()), *options),
                stdout=log,
                stderr=log,
            )

    def run(self, *words: str, **more: Any) -> subprocess.Popen[bytes]:
        """Start a program on this node."""
        with inside(self.namespace.descriptor):
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, cwd=self.directory, **more)

    def wait_ready(self) -> None:
        """Return when the service answers."""
        assert self._process is not None
        process = self._process

        def ready() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"the {self.role} ended at once:\n{self.log}")
            try:
                return bool(self.status())
            except LocalError:
                return False

        wait_until(ready, f"the {self.role} does not answer:\n{self.log}")

    def start(self, *options: str) -> None:
        """Start the service; return when it answers."""
        self.spawn(*options)
        self.wait_ready()

    def signal(self, number: int) -> None:
        """Send a signal to the service."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait for the end of the service, and return its exit code (negative: the signal)."""
        assert self._process is not None
        return self._process.wait(patience)

    def stop(self) -> int:
        """End the service in order, and return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End the service as a power failure would; harmless if it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)

    def status(self) -> dict[str, Any]:
        """Return what `rvpn status --json` shows."""
        return ask(str(self.socket), "status")

    def command(self, *words: str) -> tuple[int, str, str]:
        """Run `rvpn` with the socket of this service: exit code, output, errors."""
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = cli.main([*words, "--socket", str(self.socket)])
        return code, output.getvalue(), errors.getvalue()

    @property
    def log(self) -> str:
        """What twistd wrote so far."""
        return (self.directory / "log").read_text()

    @property
    def host(self) -> Snapshot:
        """Rules, routes, addresses, links and network parameters of this node."""
        with inside(self.namespace.descriptor):
            return snapshot()


class NodesTestCase(NamespaceTestCase):
    """A test with the network of this module."""

    def setUp(self) -> None:
        super().setUp()
        self.beyond, self.lan = Namespace(self), Namespace(self)
        self.here.connect("outside", self.beyond, "outside")
        self.beyond.connect("lan", self.lan, "lan")
        self.here.address("outside", "192.0.2.1/24", "2001:db8::1/64")
        self.beyond.address("outside", "192.0.2.2/24", "2001:db8::2/64")
        self.beyond.address("lan", "10.0.0.21/24", "fd00:10::21/64")
        self.lan.address("lan", f"{TARGET}/24", f"{TARGET6}/64")
        self.lan.route("0.0.0.0/0", "10.0.0.21")
        self.lan.route("::/0", "fd00:10::21")
        # The control sockets in it need a short path.
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        directory = Path(temporary.name)
        self.client = Node(self, "client", self.here, directory / "client")
        self.gateway = Node(self, "gateway", self.beyond, directory / "gateway")
        self.client.policy |= {
            "CLUSTER": {"Cluster 1": "192.0.2.2"},
            "TUNNEL": {"Tunnel1": f"{TARGET} Cluster 1", "Tunnel2": f"{TARGET6} Cluster 1"},
            "PEERS": {"192.0.2.2": self.gateway.public_key},
            "DEVICE": {"InnerAddress": f"{INNER} {INNER6}"},
        }
        self.gateway.policy |= {
            "CLIENTS": {"Client1": f"{self.client.public_key} {INNER}, {INNER6}"},
            "LAN": {"Interface": "lan", "Networks": "10.0.0.0/24 fd00:10::/64"},
        }

    def start_both(self, *options: str) -> None:
        """Start both services; return when both answer."""
        for node in self.gateway, self.client:
            node.spawn(*options)
        for node in self.gateway, self.client:
            node.wait_ready()

    def ping(self, address: str = TARGET, count: int = 3, wait: float = 2.0, size: int = 56) -> int:
        """Ping from the client, with so many bytes; return how many answers came."""
        answered: int = Pinger(ip_address(address), count, 0.01, size).run(wait)["received"]
        return answered

    def assertSameHost(self, node: Node, before: Snapshot) -> None:
        """Assert that the node's host is what it was."""
        after = node.host
        self.assertEqual({key: before.get(key) for key in after if after[key] != before.get(key)}, {})
        self.assertEqual(set(before) - set(after), set())
