"""Twisted adapters around the kernel: the TUN device, UDP sockets, and the settings of the host."""
