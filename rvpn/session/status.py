"""What `rvpn status --json` shows of sessions and clusters (docs/operations.md)."""

from typing import Any

from rvpn.constants import TRANSFORM_NAMES, Mechanism
from rvpn.failover.cluster import ClusterInUse
from rvpn.interfaces import Authentication
from rvpn.session.sessions import Session


def session_status(session: Session, now: float) -> dict[str, Any]:
    """Return what is shown of one session, at either end."""
    pair, told = session.sending, session.authentication
    return {
        "peer": session.peer.name,
        "authentication": _authentication_status(told) if told is not None else None,
        "endpoint": str(session.path.remote),
        "transform": TRANSFORM_NAMES[pair.outbound.transform] if pair else None,
        "trains": bool(pair and pair.trains),
        "inner_addresses": [str(address) for address in session.inner_addresses],
        "age": round(now - session.opened_at, 3),
        "key_age": round(now - pair.made_at, 3) if pair else None,
        "idle": round(now - session.received_at, 3),
        "packets_in": session.packets_in,
        "packets_out": session.packets_out,
        "bytes_in": session.bytes_in,
        "bytes_out": session.bytes_out,
    }


def _authentication_status(told: Authentication) -> dict[str, Any]:
    """Return what is shown of how a peer authenticated; times in seconds since 1970."""
    shown = {"mechanism": told.mechanism.name.lower(), "group": told.group, "cipher": told.cipher}
    if told.mechanism is not Mechanism.TLS:
        return shown
    certificate = {"certificate": told.subject, "authority": told.issuer, "serial": f"{told.serial:x}"}
    return {**shown, **certificate, "expires": told.expires_at}


def gateway_status(session: Session, *, in_use: bool, now: float) -> dict[str, Any]:
    """Return what a client shows of its session with a gateway."""
    return {
        "gateway": session.name,
        "in_use": in_use,
        "status": session.status.label,
        "round_trip": session.round_trip.smoothed,
        **session_status(session, now),
    }


def cluster_status(cluster: ClusterInUse) -> dict[str, Any]:
    """Return what a client shows of a cluster."""
    return {
        "name": cluster.cluster.name,
        "order": [str(gateway) for gateway in cluster.order],
        "in_use": cluster.in_use.name if cluster.in_use else None,
        "waiting": cluster.waiting,
    }
