"""What the subcommands share."""

import argparse
import sys
from typing import TypeAlias

from rvpn.arguments import Parser

#: What `register` takes; argparse gives it no public name.
Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"  # noqa: SLF001


def complain(fault: Exception | str) -> None:
    """Say on standard error what is wrong; for a bad policy a line for each error."""
    for line in str(fault).splitlines():
        print(f"rvpn: error: {line}", file=sys.stderr)
