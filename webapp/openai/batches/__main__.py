"""``python -m webapp.openai.batches``: run all batches until none is open. Started by a ``cpu-work`` worker."""

import logging
import os
import sys

import logs
from child_process import die_with_parent
from engines.errors import ConfigError
from services.container import Services
from settings import Settings
from store.files.files import FileStore
from store.installation import PrefixTakenError
from store.sql import db
from store.sql.batches import BatchStore
from webapp.openai.batches.runner import BatchRunner

log = logging.getLogger(__name__)


def main() -> int:
    # A runner whose worker is gone would run beside its successor.
    die_with_parent()
    settings = Settings.from_env_or_exit()
    logs.configure(settings.log_level)
    try:
        services = Services.create(settings)
    except (ConfigError, PrefixTakenError) as error:
        log.critical("Batches cannot be run: %s", error)
        return 1
    sessions = db.sessions(db.connect(settings.database_url))
    files = FileStore(sessions, settings.files_root)
    status = 1
    try:
        BatchRunner(services, BatchStore(sessions), files, settings.batch_lines, tick=_tell).run()
        status = 0
    except Exception:
        log.exception("The runner of batches failed")
    finally:
        # Without waiting for the threads of lines that were given up.
        os._exit(status)


def _tell() -> None:
    """Tell the worker that started this process that it is not stuck. Log lines go to standard error."""
    sys.stdout.write(".")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
