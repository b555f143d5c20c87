"""Tell twistd of the two roles. What they do is in rvpn.tap."""

from twisted.application.service import ServiceMaker

client = ServiceMaker(
    "rvpn client", "rvpn.tap.client", "Reach a private LAN through a cluster of gateways.", "rvpn-client"
)
gateway = ServiceMaker("rvpn gateway", "rvpn.tap.gateway", "Let clients into a private LAN.", "rvpn-gateway")
