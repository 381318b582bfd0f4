"""A port on which one process shows its numbers: workers and the gRPC process, which have no front door before them."""

import logging
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from telemetry.exposition import Collects, render

log = logging.getLogger(__name__)

#: Several processes of one host have the same setting: each takes the first port from there on that is free.
_PORTS = 100


class MetricsServer:
    """Answers ``GET /metrics`` in a thread of its own."""

    def __init__(self, host: str, port: int, sources: Callable[[], list[Collects]]) -> None:
        """Raises ``OSError`` where none of the ports can be had."""
        self._sources = sources
        self._server = self._bind(host, port)
        bound = self._server.server_address[1]
        shown = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
        self.address = f"[{shown}]:{bound}" if ":" in shown else f"{shown}:{bound}"

    def start(self) -> None:
        Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        log.info("Metrics are served", extra={"address": self.address})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _bind(self, host: str, port: int) -> ThreadingHTTPServer:
        sources = self._sources

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                if self.path.partition("?")[0] != "/metrics":
                    self.send_error(404, "Metrics are at /metrics")
                    return
                body, content_type = render(self.headers.get("Accept", ""), *sources())
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are no events."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            # Two processes on one port would answer by turns.
            allow_reuse_port = False

        for number in range(port, min(port + _PORTS, 65_536)):
            try:
                return Server((host, number), Handler)
            except OSError as error:
                taken = error
        raise taken
