"""Real services that know each other by certificates, and files of certificates that change meanwhile."""

import time
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from tests.certificates import DAY, Authority, Issued
from tests.integration.nodes import INNER, INNER6, TARGET, Node, NodesTestCase, wait_until


class CertifiedTests(NodesTestCase):
    """A client and a gateway with certificates of one authority."""

    def setUp(self) -> None:
        """Issue certificates, and let the policies name nothing but them."""
        super().setUp()
        self.valid: dict[str, Any] = {"start": time.time() - DAY, "end": time.time() + DAY}
        self.ca = Authority(**self.valid)
        self.alice = self.ca.client("alice", INNER, INNER6, **self.valid)
        self.equip(self.client, self.alice)
        self.equip(self.gateway, self.ca.gateway("gw1", "192.0.2.2", **self.valid))
        self.client.policy["GENERAL"] = {"Mechanism": "tls"}
        self.client.policy["AUTHORITIES"] = {"Authority1": "ca.pem"}
        self.gateway.policy["AUTHORITIES"] = {
            "Authority1": "ca.pem 10.99.0.0/24 fd00:99::/64",
            "Revoked": "crl.pem",
        }
        del self.client.policy["PEERS"], self.gateway.policy["CLIENTS"]

    def equip(self, node: Node, own: Issued) -> None:
        """Give a node its certificate in the place of its key, its authority, and a revocation list."""
        node.policy["IDENTITY"] = {"Certificate": "own.pem", "CertificateKey": "own.key"}
        (node.directory / "own.key").touch(0o600)
        (node.directory / "own.key").write_bytes(own.key_pem)
        (node.directory / "own.pem").write_bytes(own.pem)
        (node.directory / "ca.pem").write_bytes(self.ca.pem)
        self.revoke(node)

    def revoke(self, node: Node, *certificates: Issued, **more: Any) -> None:
        """Give a node a new revocation list, as `docs/operations.md` says: renamed into its place."""
        crl = self.ca.revocation(*certificates, **{**self.valid, **more})
        new = node.directory / "crl.new"
        new.write_bytes(crl.public_bytes(Encoding.PEM))
        new.replace(node.directory / "crl.pem")

    def test_session_and_revocation(self) -> None:
        """
        A gateway that knows no client serves one with a certificate, in IPv4 and IPv6. It renews its own
        certificate meanwhile, and ends the session when the client's is revoked; a bad file changes nothing.
        """
        self.start_both()
        self.assertEqual(self.ping(), 3)
        (session,) = self.gateway.status()["sessions"]
        self.assertEqual(session["peer"], "alice (Test CA)")
        code, text, _ = self.gateway.command("status")
        self.assertEqual(code, 0)
        self.assertIn("own: gw1, expires 20", text)
        self.assertRegex(text, r"alice +Test CA +20\S+ \S+ +X25519MLKEM768 +TLS_AES_256_GCM_SHA384")

        (self.gateway.directory / "crl.pem").write_bytes(b"rubbish")
        wait_until(lambda: "the certificates were not read again" in self.gateway.log, "rubbish is noticed")
        self.equip(self.gateway, self.ca.gateway("gw1b", "192.0.2.2", **self.valid))
        wait_until(lambda: "own: gw1b, " in self.gateway.command("status")[1], "the renewal is noticed")
        self.assertEqual(self.ping(), 3)
        self.assertEqual(self.client.status()["exchanges"]["established"], 1)

        self.revoke(self.gateway, self.alice)
        wait_until(lambda: not self.gateway.status()["sessions"], "the session ends")
        self.assertIn("ended: certificate 'alice': it is revoked", self.gateway.log)
        self.assertIn("read again (changed: crl.pem): list of authority 'Test CA' of ", self.gateway.log)
        self.assertEqual(self.ping(wait=0.5), 0)
        self.assertIn("certificate 'alice': found it is revoked, expected one that is not", self.gateway.log)

        self.revoke(self.gateway, start=self.valid["start"] - 1)
        wait_until(
            lambda: "were not read again: found list of authority 'Test CA'" in self.gateway.log, "old"
        )
        self.assertEqual(self.gateway.status()["certificate"]["lists"][0]["revoked"], 1)
        self.assertNotEqual(self.gateway.command("reload")[0], 0)

    def test_both_mechanisms(self) -> None:
        """
        A gateway with a key and a certificate takes a client of either kind; the client chooses by [PEERS].
        """
        both = {"PrivateKey": "node.key"}
        self.gateway.policy["IDENTITY"] |= both
        self.client.policy["IDENTITY"] |= both
        self.gateway.policy["CLIENTS"] = {"Client1": f"{self.client.public_key} 10.98.0.1"}
        self.start_both()
        self.assertEqual(self.ping(), 3)
        self.assertEqual(self.gateway.status()["sessions"][0]["authentication"]["mechanism"], "tls")
        self.client.stop()
        self.client.policy["PEERS"] = {"192.0.2.2": self.gateway.public_key}
        self.client.policy["DEVICE"] = {"InnerAddress": "10.98.0.1"}
        self.client.policy["TUNNEL"] = {"Tunnel1": f"{TARGET} Cluster 1"}
        self.client.start()
        self.assertEqual(self.ping(), 3)
        (session,) = self.gateway.status()["sessions"]
        self.assertEqual(
            (session["peer"], session["inner_addresses"]), (self.client.public_key, ["10.98.0.1"])
        )
        self.assertEqual(session["authentication"]["mechanism"], "noise")

    def test_own_address_in_the_range(self) -> None:
        """A gateway with an address in the range that it grants refuses to start, and says why."""
        self.gateway.policy["AUTHORITIES"]["Authority1"] = "ca.pem 10.0.0.0/24"
        self.gateway.spawn()
        self.assertEqual(self.gateway.wait(), 1)
        self.assertIn(
            "the policy grants 10.0.0.21 to a client, but it is an address of this host", self.gateway.log
        )
