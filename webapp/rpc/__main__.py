"""``python -m webapp.rpc``: the gRPC process, until SIGTERM."""

import logging
import signal
import sys
import threading

import logs
from settings import Settings
from webapp.binding import OpenToTheNetwork
from webapp.rpc.server import CannotListen, Server

log = logging.getLogger(__name__)


def main() -> int:
    settings = Settings.from_env()
    logs.configure(settings.log_level)
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    try:
        server = Server(settings)
    except (CannotListen, OpenToTheNetwork) as error:
        log.critical("The gRPC server cannot start: %s", error)
        return 1
    server.start()
    over.wait()
    server.stop(settings.drain)
    return 0


if __name__ == "__main__":
    sys.exit(main())
