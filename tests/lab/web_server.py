# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The web server of a lab's LAN: answers C(NAME sees ADDRESS), the address being the client's as it arrived here."""

from __future__ import annotations

import http.server
import os
import socket
import socketserver
import sys


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # HTTPServer's own looks the host's name up in DNS.
        socketserver.TCPServer.server_bind(self)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        address = self.client_address[0].removeprefix("::ffff:")
        answer = f"{sys.argv[1]} sees {address}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        print(self.client_address[0], format % args, file=sys.stderr, flush=True)


if __name__ == "__main__":
    with Server(("::", 80), Handler) as server:
        print("ready", flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        server.serve_forever()
