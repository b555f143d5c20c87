"""A start that cannot succeed: one line about each fault, exit code 1, and a host that is as it was."""

import contextlib
import os
import re
import signal
import socket
import subprocess

from twisted.internet import reactor

from rvpn import tap
from rvpn.files.state import StateDirectory
from rvpn.lab.namespaces import inside
from rvpn.service.client import ClientService
from tests.integration.nodes import PATIENCE, TWISTD, Node, NodesTestCase, wait_until


class RefusalTests(NodesTestCase):
    """`makeService`, with everything that can be missing or wrong."""

    timeout = 30

    def refusal(self, node: Node) -> str:
        """Try to start a node; return what is said about it, once it is sure that nothing else came of it."""
        before = node.host
        options = tap.Options()
        options.parseOptions(["--policy", str(node.file)])
        role = tap.client if node.role == "client" else tap.gateway
        with inside(node.namespace.descriptor):
            error = self.assertRaises(SystemExit, role.makeService, options)
        self.assertSameHost(node, before)
        self.assertFalse(node.socket.is_socket())
        text = str(error)
        self.assertTrue(all(line.startswith(f"rvpn {node.role}: ") for line in text.splitlines()), text)
        return text.replace(f"rvpn {node.role}: ", "").replace(str(node.directory), "")

    def assertRefused(self, node: Node, *lines: str) -> None:
        """Assert that a node with its policy is refused with lines of these beginnings."""
        node.write_policy()
        refusal = self.refusal(node).splitlines()
        self.assertEqual(
            [found[: len(line)] for found, line in zip(refusal, lines, strict=True)], list(lines)
        )

    def test_missing_policy(self) -> None:
        """A policy that is not there, or no file at all."""
        self.assertEqual(
            self.refusal(self.client),
            "/node.policy:1: error: cannot read this file: No such file or directory",
        )
        self.client.file.mkdir()
        self.assertIn("Is a directory", self.refusal(self.client))

    def test_faulty_policy(self) -> None:
        """Every fault of a policy has its line."""
        self.client.policy["CLUSTER"]["Cluster 1"] = "foo"
        self.client.policy["GENERAL"] = {"Port": "0"}
        self.assertRefused(
            self.client,
            "/node.policy:7: error: Cluster 1: found 'foo', expected",
            "/node.policy:16: error: Port: found '0', expected",
        )
        self.client.file.write_bytes(b"\xff\xfe")
        self.assertRegex(self.refusal(self.client), r"^/node.policy:1: error: .*\n*$")

    def test_wrong_role(self) -> None:
        """A policy of the other role, or without identity, is refused at the section in question."""
        del self.client.policy["TUNNEL"], self.client.policy["CLUSTER"]
        self.assertRefused(self.client, "/node.policy:1: error: found no entry in [TUNNEL], expected one: is")
        del self.gateway.policy["LAN"]["Networks"], self.gateway.policy["IDENTITY"]["PrivateKey"]
        self.assertRefused(
            self.gateway,
            "/node.policy:1: error: found no PrivateKey in [IDENTITY], expected",
            "/node.policy:7: error: found no Networks in [LAN], expected some: is",
        )

    def test_key_files(self) -> None:
        """A key file that is missing, or that others can read."""
        (self.client.directory / "node.key").chmod(0o644)
        self.assertRefused(self.client, "/node.key: found mode 0644, expected 0600: others may have read")
        self.client.policy["IDENTITY"]["PrivateKey"] = "no.key"
        self.assertRefused(self.client, "/no.key: no such key file; make one with: rvpn keygen /no.key")
        (self.client.directory / "node.key").chmod(0o600)
        self.client.policy["IDENTITY"] = {"PrivateKey": "node.key", "PresharedKey": "/dev/null"}
        self.assertRefused(self.client, "/dev/null: found something that is not a regular file")

    def test_port_in_use(self) -> None:
        """Another program has the UDP port."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("0.0.0.0", 4500))
            self.assertRefused(self.client, "cannot listen on UDP 0.0.0.0:4500: another program uses it")

    def test_foreign_address(self) -> None:
        """An address to listen on that this host does not have."""
        self.client.policy["GENERAL"] = {"Listen": "192.0.2.77"}
        self.assertRefused(self.client, "cannot listen on UDP 192.0.2.77:4500: no interface has this address")

    def test_device_in_use(self) -> None:
        """The device name belongs to another interface."""
        self.client.policy["DEVICE"]["Name"] = "outside"
        self.assertRefused(self.client, "cannot create the TUN device outside: a device of that name exists")

    def test_state_directory(self) -> None:
        """A state directory that is in use, open to others, or impossible."""
        state = self.client.directory / "node.state"
        used = StateDirectory(state)
        self.assertRefused(self.client, "another rvpn process uses the state directory /node.state")
        used.close()
        state.chmod(0o755)
        self.assertRefused(self.client, "others can enter the state directory /node.state: chmod 700")
        self.client.policy["CONTROL"]["StateDirectory"] = "node.key/state"
        self.assertRefused(self.client, "cannot open the state directory /node.key/state: ")

    def test_control_socket(self) -> None:
        """A control socket that a live process has, or that cannot be made; what came before is undone."""
        self.client.policy["CONTROL"]["Socket"] = "other.sock"
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(self.client.directory / "other.sock"))
            other.listen()
            self.assertRefused(self.client, "/other.sock: another process listens on this control socket")
        self.client.policy["CONTROL"]["Socket"] = "no/such/directory/sock"
        self.assertRefused(
            self.client, "/no/such/directory/sock: cannot listen on this control socket: No such"
        )

    def test_lan_interface(self) -> None:
        """A gateway's LAN interface that does not exist."""
        self.gateway.policy["LAN"]["Interface"] = "lan7"
        self.assertRefused(self.gateway, "there is no network interface lan7")

    def test_own_inner_address(self) -> None:
        """A gateway that grants an address of its own to a client (DESIGN 4)."""
        self.gateway.policy["CLIENTS"]["Client1"] = f"{self.client.public_key} 10.0.0.21"
        self.assertRefused(
            self.gateway, "the policy grants 10.0.0.21 to a client, but it is an address of this host"
        )

    def test_no_network(self) -> None:
        """`InnerAddress = own` needs a network to take the address from (R18)."""
        self.client.policy["DEVICE"]["InnerAddress"] = "own"
        self.client.policy["CLUSTER"]["Cluster 1"] = "198.51.100.1"
        self.assertRefused(self.client, "there is no route to any gateway, and so no address of our own")

    def test_second_of_a_role(self) -> None:
        """
        A second client on one host is refused, whatever its policy, and leaves the routes of the first alone.
        """
        first = ClientService(str(self.client.write_policy()), reactor)
        first.open()
        self.addCleanup(first.stopService)
        second = Node(self, "client", self.here, self.client.directory / "second")
        second.policy |= {
            name: keys for name, keys in self.client.policy.items() if name not in second.policy
        }
        second.policy |= {
            "GENERAL": {"Port": "4501"},
            "DEVICE": {"InnerAddress": "10.99.0.2", "Name": "rvpn9"},
        }
        self.assertRefused(second, "another rvpn client runs on this host; there can be one of each role")

    def test_stranger(self) -> None:
        """Nothing that any user may take keeps a service from starting: here a name of an abstract socket."""
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.bind("\0rvpn client")
            service = ClientService(str(self.client.write_policy()), reactor)
            service.open()
            self.addCleanup(service.stopService)


class ProcessTests(NodesTestCase):
    """twistd itself."""

    timeout = 180

    def test_errors(self) -> None:
        """What goes wrong is one line on standard error and exit code 1, in the background as in front."""
        client, gateway = self.client, self.gateway
        before = client.host, gateway.host
        faulty = client.directory / "faulty.policy"
        faulty.write_text("[TUNNEL]\nTunnel1 = cat\nTunnel2 = dog\n")
        front, back = (TWISTD, "--nodaemon", "--pidfile="), (TWISTD, "--pidfile=pid")
        as_client = ("rvpn-client", "--policy", str(client.write_policy()))
        as_gateway = ("rvpn-gateway", "--policy", str(gateway.write_policy()))
        hidden = "mount -t tmpfs none /dev/net && exec " + " ".join((*back, *as_gateway))
        cases = {
            (*front, "rvpn-client"): "twistd rvpn-client: expected --policy FILE; .* --help tells more\n",
            (*front, "rvpn-gateway", "--polcy"): "twistd rvpn-gateway: option --polcy not recognized; .*\n",
            (*front, "rvpn-client", "--policy", str(faulty)): "(rvpn client: .*:[23]: error: .*\n){2}",
            (
                *back,
                "rvpn-gateway",
                "--policy",
                "no.policy",
            ): "rvpn gateway: .*no.policy:1: error: cannot .*\n",
            (*front, *as_client, "--json-log", "/no/log"): "rvpn client: /no/log: cannot open the log: .*\n",
            (
                "setpriv",
                "--bounding-set=-all",
                *back,
                *as_client,
            ): "rvpn client: .*no permission .* root .*\n",
            ("unshare", "--mount", "sh", "-c", hidden): "rvpn gateway: .*there is no /dev/net/tun: load .*\n",
        }
        for words, expected in cases.items():  # one after the other: a start is work, and machines are slow
            node = gateway if words[0] == "unshare" else client
            process = node.run(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.addCleanup(process.kill)
            output, errors = process.communicate(timeout=PATIENCE)
            self.assertEqual((process.returncode, output), (1, b""))
            self.assertTrue(re.fullmatch(expected, errors.decode()), errors.decode())
        self.assertSameHost(client, before[0])
        self.assertSameHost(gateway, before[1])
        self.assertFalse((client.directory / "pid").exists() or (gateway.directory / "pid").exists())

    def test_twistd_fails(self) -> None:
        """Where twistd fails after the service has taken what it needs, that is given back all the same."""
        before = self.client.host
        process = self.client.run(
            *(TWISTD, "--nodaemon", "--pidfile=", "--logfile=/no/where/log"),
            *("rvpn-client", "--policy", str(self.client.write_policy())),
            stderr=subprocess.DEVNULL,
        )
        self.assertEqual(process.wait(PATIENCE), 1)
        self.assertSameHost(self.client, before)
        self.assertFalse(self.client.socket.exists())

    def test_background(self) -> None:
        """
        Without --nodaemon a start returns 0 once the service is there; the pidfile says whom to end.

        A policy named by a relative path is found again although twistd changes its directory.
        """
        before, pidfile = self.client.host, self.client.directory / "pid"
        process = self.client.run(
            *(TWISTD, "--rundir=/", f"--pidfile={pidfile}", f"--logfile={self.client.directory / 'log'}"),
            *("rvpn-client", "--policy", self.client.write_policy().name),
        )
        self.assertEqual(process.wait(PATIENCE), 0)
        wait_until(pidfile.exists, "there is a pidfile")
        daemon = os.pidfd_open(int(pidfile.read_text()))
        self.addCleanup(os.close, daemon)
        self.addCleanup(self.kill, daemon)
        self.assertEqual(self.client.status()["role"], "client")
        code, output, _ = self.client.command("reload")
        self.assertEqual((code, output), (0, "client: policy read again\n"))
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
        wait_until(lambda: not pidfile.exists(), "the daemon ends")
        self.assertIn("rvpn client has stopped", self.client.log)
        self.assertSameHost(self.client, before)

    def kill(self, daemon: int) -> None:
        """Kill a process, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(daemon, signal.SIGKILL)
