"""
The policy file: text -> `Policy` -> lookup.

`statements` reads the lines of a file, by the table in `keys` and the types in `values`. `grammar` resolves
what they say of each other and makes a `Policy` (`model`), or a `Diagnostic` of each fault. `lint` adds
warnings. From the policy's tunnel entries `lookup` builds a `TunnelIndex`, which tells the entry of each
target address. `auto` puts the detected access server into the entries for AUTO.

Services call `load`, `rvpn policy check` calls `check`, the data path calls `TunnelIndex.find_packed`.
"""

from rvpn.policy.auto import resolve_auto
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
    "resolve_auto",
]
