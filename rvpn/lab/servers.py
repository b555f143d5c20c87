"""
The servers of a target: files over HTTP, TCP streams that are hashed and echoed, UDP echo.

`python -m rvpn.lab.servers` says "ready" when all of them listen, on IPv4 and IPv6, and serves until it is
killed. The tools of `rvpn.lab.traffic` are the other end. It is meant to run inside a node of the laboratory.
"""

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler, ThreadingTCPServer, UDPServer

from rvpn.lab import wire
from rvpn.lab.payload import BLOCK, ECHO_PORT, HTTP_PORT, STREAM_HEADER, blocks, receive_exactly


class _Files(BaseHTTPRequestHandler):
    """GET /SIZE/SEED returns that much of that data."""

    def do_GET(self) -> None:
        """Answer one request."""
        try:
            size, seed = map(int, self.path.strip("/").split("/"))
        except ValueError:
            self.send_error(404, "expected /SIZE/SEED")
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for block in blocks(size, seed):
            self.wfile.write(block)

    def log_message(self, *_arguments: object) -> None:
        """Write no log."""


class _Stream(BaseRequestHandler):
    """One TCP stream of `stream`."""

    def handle(self) -> None:
        """Hash what arrives, send it back if that was asked for, then the hash."""
        left, echo = STREAM_HEADER.unpack(receive_exactly(self.request, STREAM_HEADER.size))
        value = hashlib.sha256()
        while left and (block := self.request.recv(min(BLOCK, left))):
            value.update(block)
            left -= len(block)
            if echo:
                self.request.sendall(block)
        self.request.sendall(value.digest())


class _Echo(BaseRequestHandler):
    """One UDP datagram."""

    def handle(self) -> None:
        """Send it back."""
        datagram, connection = self.request
        connection.sendto(datagram, self.client_address)


class _HTTPServer(ThreadingHTTPServer):
    address_family = socket.AF_INET6


class _StreamServer(ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = daemon_threads = True


class _EchoServer(UDPServer):  # one thread: what arrives in order is sent back in order
    address_family = socket.AF_INET6


def serve() -> None:
    """Serve HTTP, streams and echo on all addresses, IPv4 ones too, until killed; says when it is ready."""
    anywhere = "::"  # a namespace of the laboratory has no other network
    servers = (
        _HTTPServer((anywhere, HTTP_PORT), _Files),
        _StreamServer((anywhere, ECHO_PORT), _Stream),
        _EchoServer((anywhere, ECHO_PORT), _Echo),
    )
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    wire.say_ready()
    servers[0].serve_forever()


if __name__ == "__main__":
    serve()
