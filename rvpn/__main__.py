"""`python -m rvpn` is `rvpn`."""

import sys

from rvpn.cli import main

if __name__ == "__main__":
    sys.exit(main())
