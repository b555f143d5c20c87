"""The VPN that survives the death of its gateways. docs/architecture.md says where to change what."""

__version__ = "0.1.0"
