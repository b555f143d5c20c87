"""
The policy file: text -> `Policy` -> lookup.

`load` and `check` make a `Policy` of a file's text, `TunnelIndex` tells which tunnel entry a target belongs to.
"""

from rvpn.policy.diagnostics import Diagnostic, PolicyError, Severity
from rvpn.policy.grammar import load, parse
from rvpn.policy.lint import check
from rvpn.policy.lookup import TunnelIndex
from rvpn.policy.model import Client, Cluster, Policy, Redirect, Tunnel

__all__ = [
    "Client",
    "Cluster",
    "Diagnostic",
    "Policy",
    "PolicyError",
    "Redirect",
    "Severity",
    "Tunnel",
    "TunnelIndex",
    "check",
    "load",
    "parse",
]
