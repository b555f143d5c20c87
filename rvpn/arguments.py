"""The command lines of `rvpn` and of the lab's tools: what they have in common."""

import argparse
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import inf
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations, and answers wrong arguments with one line instead of the usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """
        Refuse what is unknown here: argparse would have each subcommand hand it up to the first parser, whose
        --help knows nothing of that subcommand.
        """
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, []

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong, and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help tells more\n")


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return what reads an argument that is a whole number within limits."""

    def read(text: str) -> int:
        if text.isdecimal() and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from {least} to {most}")

    return read


def number(least: float, most: float = inf) -> Callable[[str], float]:
    """Return what reads an argument that is a finite number within limits."""
    limits = f"of at least {least:g}" if most == inf else f"from {least:g} to {most:g}"

    def read(text: str) -> float:
        with suppress(ValueError):
            if least <= float(text) <= most and float(text) < inf:
                return float(text)
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number {limits}")

    return read
