"""Renews a lease while its holder does something that takes long."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from store.sql.leases import LEASE_SECONDS, LeaseLostError

log = logging.getLogger(__name__)


@contextmanager
def renewed(renew: Callable[[], object], lost: threading.Event | None = None) -> Iterator[None]:
    """Call ``renew`` now and then while the block runs. ``lost`` is set once it raises ``LeaseLostError``."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(LEASE_SECONDS / 4):
            try:
                renew()
            except LeaseLostError:
                if lost is not None:
                    lost.set()
                return
            except SQLAlchemyError as error:
                log.warning("The lease cannot be renewed now: %s", error.__class__.__name__)

    renewer = threading.Thread(target=run, name="lease", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        ended.set()
        renewer.join(timeout=5)
