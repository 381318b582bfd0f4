"""``python -m webapp.rpc``: the gRPC process, until SIGTERM."""

import logging
import signal
import sys
import time

import logs
from engines.errors import ConfigError
from services.bind_address import InsecureBindError
from settings import Settings
from store.installation import PrefixTakenError
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
    while not stop.raised:
        time.sleep(_POLL_SECONDS)
    server.stop(settings.drain)
    return 0


if __name__ == "__main__":
    sys.exit(main())
