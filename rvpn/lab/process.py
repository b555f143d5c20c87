"""Processes in the nodes of a laboratory, as seen from outside; `rvpn.lab.lab` starts them."""

import json
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

from rvpn.errors import LocalError
from rvpn.lab import wire


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command in a node ended: its exit code (negative: the signal) and what it wrote."""

    code: int
    output: bytes
    errors: bytes


class Process:
    """A process in a node. Closing it kills it, unless it has a name."""

    def __init__(self, connection: socket.socket, pid: int, send_signal: Callable[[int, int], None]) -> None:
        self._connection, self._send_signal = connection, send_signal
        #: The process's number inside the laboratory.
        self.pid = pid
        #: Its exit code once it has ended and `wait` has noticed; negative: the signal.
        self.code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """
        Return the exit code. Raises TimeoutError after `timeout` seconds, `LocalError` if the lab ended.
        """
        if self.code is None:
            self._connection.settimeout(timeout)
            try:
                answer, _ = wire.receive(self._connection)
            except (EOFError, ConnectionError):
                raise LocalError("the laboratory ended") from None
            self.code = answer["exit"]
        assert self.code is not None
        return self.code

    def running(self) -> bool:
        """Tell whether it has not ended yet."""
        if self.code is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.code is None

    def signal(self, number: int) -> None:
        """Signal the process and those it started. Raises `LocalError` if it has ended."""
        self._send_signal(self.pid, number)

    def close(self) -> None:
        """Let go of the process."""
        self._connection.close()

    def __enter__(self) -> Self:
        """Return the process itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Let go of the process."""
        self.close()


class Measurement:
    """A tool of `rvpn.lab.traffic` or `load` at work, which writes to two files of its own."""

    def __init__(self, process: Process, output: BinaryIO, errors: BinaryIO) -> None:
        self._process, self._output, self._errors = process, output, errors

    def running(self) -> bool:
        """Tell whether it has not ended yet."""
        return self._process.running()

    def result(self, timeout: float = 60.0) -> dict[str, Any]:
        """Return the tool's figures; only once. Raises `LocalError` with its words if it measured nothing."""
        with self._process, self._output, self._errors:
            try:
                self._process.wait(timeout)
            except TimeoutError:
                raise LocalError(f"no result within {timeout:g} s") from None
            self._output.seek(0)
            self._errors.seek(0)
            try:
                figures: dict[str, Any] = json.loads(self._output.read())
            except ValueError:
                words = self._errors.read().decode(errors="replace").strip()
                raise LocalError(words or "no result") from None
            return figures
