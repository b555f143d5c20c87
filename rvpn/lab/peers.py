"""
What the benchmark compares: tunnels of several kinds between the same client and gateway of a laboratory.

    PEERS[name].start(lab) -> the client reaches the target through it; the tunnel's two processes have the
    names of their nodes, `client` and `gateway1`

`none` is plain routing without a tunnel; `rvpn` runs with the policy of the laboratory. The others are
Debian's packages, which `install` gets where they are missing. Each is set up for speed: OpenVPN with
AES-256-GCM over UDP, large buffers, a long queue and segments that fit; wireguard-go has nothing to set.
"""

import datetime
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from rvpn import __version__
from rvpn.errors import LocalError
from rvpn.lab import services
from rvpn.lab.figures import NONE, RVPN
from rvpn.lab.lab import Lab, tail
from rvpn.lab.topology import INNER_ADDRESSES, LAN_NETWORKS

CLIENT, GATEWAY = "client", "gateway1"
_PORT = 1194
#: Seconds until a tunnel carries its first packet.
_START_TIME = 15.0
_INSTALL_TIME, _VERSION_TIME = 300.0, 10.0
_INNER, _LAN = INNER_ADDRESSES[0], LAN_NETWORKS[0]
#: The gateway's own end of OpenVPN's tunnel.
_FAR_END = "10.99.0.254"


@dataclass(frozen=True, slots=True)
class Peer:
    """One kind of tunnel. `program` is what must be installed; Debian's package has the same name."""

    start: Callable[[Lab], None]
    program: str | None = None

    @property
    def path(self) -> str | None:
        """Where its program is; None if it is not installed."""
        directories = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
        return self.program and shutil.which(self.program, path=directories)

    @property
    def missing(self) -> str:
        """A sentence about what keeps it from being measured; empty if nothing does."""
        if self.program is None or self.path:
            return ""
        return f"{self.program} is not installed; on Debian and Ubuntu --install or apt-get gets it"

    @property
    def version(self) -> str:
        """What its program calls itself."""
        if self.path is None:
            return __version__ if self.program is None else ""
        told = subprocess.run(
            [self.path, "--version"], capture_output=True, text=True, timeout=_VERSION_TIME, check=False
        )
        return (told.stdout or told.stderr).split()[1]


def install(names: Iterable[str]) -> None:
    """
    Install what is missing for these peers, as root, from Debian's archive; what apt-get says goes to stderr.

    Whether it was of use tells `Peer.missing` afterwards.
    """
    packages = [peer.program for name in names if (peer := PEERS[name]).program and peer.missing]
    if not packages or shutil.which("apt-get") is None:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *packages]):
        subprocess.run(
            ["apt-get", *words], stdout=sys.stderr, env=environment, timeout=_INSTALL_TIME, check=False
        )


# --- None, and our own -----------------------------------------------------------------------------------


def _start_none(lab: Lab) -> None:
    topology = lab.topology
    lab.change("set_forwarding", GATEWAY)
    lab.change("add_route", "router", str(_LAN), GATEWAY, str(topology.gateway_address(GATEWAY)))
    _answer_through_gateway(lab, f"{topology.client_address}/32")


def _start_rvpn(lab: Lab) -> None:
    services.configure(lab)
    services.start_all(lab)


def _answer_through_gateway(lab: Lab, client: str) -> None:
    gateway = str(lab.topology.lan_addresses(GATEWAY)[0])
    for target in lab.topology.target_names:
        lab.change("add_route", target, client, "lan", gateway)


# --- OpenVPN ---------------------------------------------------------------------------------------------


def _start_openvpn(lab: Lab) -> None:
    fingerprints = {node: _certificate(lab.directory / node) for node in (CLIENT, GATEWAY)}
    client, gateway = lab.topology.client_address, lab.topology.gateway_address(GATEWAY)
    lab.change("set_forwarding", GATEWAY)
    far = ["--tls-server", "--dh", "none", "--local", str(gateway), "--remote", str(client), str(_PORT)]
    far += ["--ifconfig", _FAR_END, str(_INNER)]
    near = ["--tls-client", "--local", str(client), "--remote", str(gateway), str(_PORT)]
    near += ["--ifconfig", str(_INNER), _FAR_END]
    near += ["--route", str(_LAN.network_address), str(_LAN.netmask)]
    _run(lab, GATEWAY, ["openvpn", *_openvpn_options(lab, GATEWAY, fingerprints[CLIENT]), *far])
    _run(lab, CLIENT, ["openvpn", *_openvpn_options(lab, CLIENT, fingerprints[GATEWAY]), *near])
    _answer_through_gateway(lab, f"{_INNER}/32")
    _wait(lab)


def _openvpn_options(lab: Lab, node: str, peer: str) -> list[str]:
    own = lab.directory / node
    buffer = str(4 << 20)
    return [
        *("--dev", "tun0", "--proto", "udp4", "--lport", str(_PORT)),
        *("--cert", f"{own}.crt", "--key", f"{own}.pem", "--peer-fingerprint", peer),
        *("--data-ciphers", "AES-256-GCM", "--cipher", "AES-256-GCM", "--disable-dco"),
        *("--sndbuf", buffer, "--rcvbuf", buffer, "--txqueuelen", "4000", "--fast-io"),
        *("--mssfix", "1500", "mtu", "--verb", "1"),
    ]


def _certificate(base: Path) -> str:
    """Make a key and a certificate of its own signature beside `base`, and return its SHA-256 fingerprint."""
    key, now = generate_private_key(SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, base.name)])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    private = Path(f"{base}.pem")
    private.touch(mode=0o600)
    private.write_bytes(pem)
    Path(f"{base}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    return certificate.fingerprint(hashes.SHA256()).hex(":")


# --- WireGuard -------------------------------------------------------------------------------------------


def _start_wireguard(lab: Lab) -> None:
    keys = {node: X25519PrivateKey.generate() for node in (CLIENT, GATEWAY)}
    gateway = lab.topology.gateway_address(GATEWAY)
    lab.change("set_forwarding", GATEWAY)
    inside = {CLIENT: f"{_INNER}/32", GATEWAY: str(_LAN)}
    for node, peer in ((GATEWAY, CLIENT), (CLIENT, GATEWAY)):
        interface = f"wg-{node}"
        _run(lab, node, ["wireguard-go", "--foreground", interface], LOG_LEVEL="error")
        lines = [f"private_key={keys[node].private_bytes_raw().hex()}", f"listen_port={_PORT}"]
        lines += [f"public_key={keys[peer].public_key().public_bytes_raw().hex()}"]
        lines += [f"endpoint={gateway}:{_PORT}"] * (node == CLIENT) + [f"allowed_ip={inside[peer]}"]
        _configure_wireguard(lab, node, interface, lines)
        lab.change("adopt_device", node, interface, [inside[CLIENT]] * (node == CLIENT))
        lab.change("add_route", node, inside[peer], interface)
    _answer_through_gateway(lab, inside[CLIENT])
    _wait(lab)


def _configure_wireguard(lab: Lab, node: str, interface: str, lines: Sequence[str]) -> None:
    file = lab.directory / f"{interface}.conf"
    file.touch(mode=0o600)
    file.write_text("".join(f"{line}\n" for line in lines))
    done = lab.run(node, [sys.executable, "-m", "rvpn.lab.wireguard", interface, str(file)])
    if done.code:
        raise LocalError(f"wireguard-go in {node} was not configured: {done.errors.decode().strip()}")


# --- Either of them --------------------------------------------------------------------------------------


def _run(lab: Lab, node: str, argv: Sequence[str], **environment: str) -> None:
    program = PEERS[argv[0]].path or argv[0]
    with services.log_file(lab, node).open("ab") as log:
        files = (None, log.fileno(), log.fileno())
        lab.spawn(
            node,
            [program, *argv[1:]],
            files,
            name=node,
            cwd=str(lab.directory),
            env={**os.environ, **environment},
        ).close()


def _wait(lab: Lab) -> None:
    """Return when the target answers. Raises `LocalError` with the ends of the logs if it does not."""
    target = lab.topology.lan_addresses(lab.topology.target_names[0])[0]
    end = time.monotonic() + _START_TIME
    while not lab.traffic(CLIENT, "ping", target, "--count", 1, "--wait", 0.3)["received"]:
        if time.monotonic() > end:
            logs = (f"{node}: {tail(services.log_file(lab, node), 5)}" for node in (CLIENT, GATEWAY))
            raise LocalError("the tunnel carries nothing; " + "\n".join(logs))


PEERS = {
    NONE: Peer(_start_none),
    RVPN: Peer(_start_rvpn),
    "openvpn": Peer(_start_openvpn, "openvpn"),
    "wireguard-go": Peer(_start_wireguard, "wireguard-go"),
}
