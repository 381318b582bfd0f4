"""``python -m webapp.rpc``: the gRPC process, until SIGTERM."""

import logging
import signal
import sys
import time
from contextlib import ExitStack

import logs
from engines.errors import ConfigError
from services.bind_address import InsecureBindError
from settings import Settings
from store.installation import PrefixTakenError
from telemetry.exposition import of_this_program
from telemetry.server import MetricsServer
from webapp.rpc.server import CannotListen, Server

log = logging.getLogger(__name__)


#: How often the main thread looks whether it was told to stop. Seconds.
_POLL_SECONDS = 0.2


class _StopFlag:
    """Set by SIGTERM and SIGINT. Not an event: one is not safe to set in a handler of the thread that waits for it."""

    def __init__(self) -> None:
        self.raised = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._raise)

    def _raise(self, *_: object) -> None:
        self.raised = True


def main() -> int:
    settings = Settings.from_env_or_exit()
    logs.configure(settings.log_level)
    stop = _StopFlag()
    try:
        server = Server(settings)
    except (CannotListen, InsecureBindError, ConfigError, PrefixTakenError) as error:
        log.critical("The gRPC server cannot start: %s", error)
        return 1
    server.start()
    shown = _show_metrics(settings, server)
    while not stop.raised:
        time.sleep(_POLL_SECONDS)
    server.stop(settings.drain)
    shown.close()
    return 0


def _show_metrics(settings: Settings, server: Server) -> ExitStack:
    """Show this process's metrics on a port of its own, where one is set; closing the result ends that."""
    stack = ExitStack()
    if settings.metrics_port:
        try:
            shown = MetricsServer(settings.metrics_host, settings.metrics_port, lambda: [of_this_program()])
        except OSError as error:
            # Calls are worth more than numbers.
            log.error("The metrics cannot be shown on port %d or one behind it: %s", settings.metrics_port, error)
            return stack
        shown.start()
        stack.callback(shown.close)
        stack.callback(server.announce_metrics(shown.address).close)
    return stack


if __name__ == "__main__":
    sys.exit(main())
