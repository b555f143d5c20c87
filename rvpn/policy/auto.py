"""
What AUTO stands for (R15): the access server that this host was found to have, or what the policy puts in
its place.
"""

from dataclasses import replace

from rvpn.interfaces import IPAddress
from rvpn.policy.model import Cluster, Policy


def resolve_auto(policy: Policy, detected: IPAddress | None) -> Policy:
    """
    Return `policy` with a cluster in every AUTO entry, as far as there is one.

    It is the one that the first `RedirectTunnel` for the access server `detected` names, else a cluster of
    the server alone. Entries stay without a cluster while no server is detected, or one with a link-local
    address is not redirected: such an address is no place to send a datagram to.
    """
    cluster = _cluster(policy, detected)
    tunnels = (
        replace(tunnel, cluster=cluster) if tunnel.cluster is None else tunnel for tunnel in policy.tunnels
    )
    return replace(policy, tunnels=tuple(tunnels))


def _cluster(policy: Policy, detected: IPAddress | None) -> Cluster | None:
    for redirect in policy.redirects:
        if redirect.server == detected:
            return redirect.cluster
    if detected is None or detected.is_link_local:
        return None
    return Cluster(str(detected), (detected,))
