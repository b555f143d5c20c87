"""
What the laboratory needs of the machine, tried out rather than guessed, and how to get what is missing.

    missing() -> sentences for a person, none if the laboratory can run
"""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

TUN = Path("/dev/net/tun")
#: User (without root), mount, network and PID namespaces; the holder becomes PID 1 and dies with its parent.
UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
AS_USER = ("--user", "--map-root-user")


def unshare_command() -> tuple[str, ...]:
    """Return the command line that the holder's own is appended to, for this user."""
    return UNSHARE if os.geteuid() == 0 else UNSHARE + AS_USER


@cache
def missing() -> tuple[str, ...]:
    """Return a sentence for each thing that keeps the laboratory from running on this machine."""
    return tuple(sentence for sentence in (_namespaces(), _tun()) if sentence)


def _namespaces() -> str:
    if shutil.which("unshare") is None:
        return "The lab needs the program unshare. On Debian and Ubuntu: apt-get install util-linux"
    probe = subprocess.run(
        [*unshare_command(), sys.executable, "-c", ""],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if probe.returncode == 0:
        return ""
    reason = probe.stderr.strip().replace("\n", "; ") or f"exit code {probe.returncode}"
    remedy = (
        "In a container, give it CAP_SYS_ADMIN (for Docker: --privileged)."
        if os.geteuid() == 0
        else "Run it as root, or allow user namespaces: sysctl kernel.unprivileged_userns_clone=1 "
        "kernel.apparmor_restrict_unprivileged_userns=0 (whichever of the two this kernel has)."
    )
    return f"The lab may not make network namespaces here ({reason}). {remedy}"


def _tun() -> str:
    if not TUN.exists():
        return (
            f"There is no {TUN}. Load its driver: modprobe tun. In a container, pass the device in "
            f"(for Docker: --device {TUN})."
        )
    try:
        os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{TUN} cannot be opened ({error.strerror}). Run the lab as root, or: chmod 0666 {TUN}"
    return ""
