"""
Captures of the laboratory's links.

    with Capture.start(lab, OUTSIDE_LINK) as outside:
        ...traffic...
        counts = outside.stop()
    counts.packets[Kind.CLEAR], counts.missed; outside.pcap is for scapy and Wireshark
"""

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from rvpn.errors import LocalError
from rvpn.lab.classify import Kind
from rvpn.lab.lab import Lab
from rvpn.lab.process import Process
from rvpn.lab.topology import LAN

STOP_TIME = 10.0


class Tap(NamedTuple):
    """Where to listen: an interface of a node."""

    node: str
    interface: str


#: What the Internet sees of the client.
OUTSIDE_LINK = Tap("router", "client")
#: The bridge: everything that passes on the LAN, once.
LAN_LINK = Tap("lan", LAN)


def gateway_link(gateway: str) -> Tap:
    """Return the tap on one gateway's outside link."""
    return Tap("router", gateway)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a link carried, and how many frames the capture missed (none, or the counts prove nothing)."""

    packets: dict[Kind, int]
    octets: dict[Kind, int]
    missed: int


class Capture:
    """A capture that runs."""

    def __init__(self, process: Process, result: Path, pcap: Path) -> None:
        self._process, self._result = process, result
        #: The capture file; complete after `stop`.
        self.pcap = pcap

    @classmethod
    def start(cls, lab: Lab, tap: Tap, name: str | None = None) -> Self:
        """Capture from now on: when this returns, no frame is missed. `name` is that of the files."""
        name = name or f"{tap.node}-{tap.interface}"
        pcap, result = lab.directory / f"{name}.pcap", lab.directory / f"{name}.counts"
        argv = [sys.executable, "-m", "rvpn.lab.sniffer", tap.interface, str(result), str(pcap)]
        inner = map(str, lab.topology.inner_addresses)
        return cls(lab.start_ready(tap.node, [*argv, *inner], None), result, pcap)

    def stop(self) -> Counts:
        """End the capture and return what it counted. Raises `LocalError` if it failed."""
        self._process.signal(signal.SIGTERM)
        if code := self._process.wait(STOP_TIME):
            raise LocalError(f"the capture failed with exit code {code}")
        result = json.loads(self._result.read_text())
        counts = {Kind(name): count for name, count in result["counts"].items()}
        return Counts(
            {kind: count["packets"] for kind, count in counts.items()},
            {kind: count["bytes"] for kind, count in counts.items()},
            result["missed"],
        )

    def __enter__(self) -> Self:
        """Return the capture itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Kill the capture if it still runs."""
        self._process.close()
