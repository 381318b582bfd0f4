"""Keeps a job's lease while its runner does something that takes long."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from store.sql.jobs import JobStore
from store.sql.leases import LEASE_SECONDS, Lease, LeaseLostError

log = logging.getLogger(__name__)


@contextmanager
def kept(jobs: JobStore, lease: Lease) -> Iterator[None]:
    """Renew the lease while the block runs; one that is lost shows at the runner's next write."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(LEASE_SECONDS / 4):
            try:
                jobs.renew(lease)
            except LeaseLostError:
                return
            except SQLAlchemyError as error:
                log.warning("The lease cannot be renewed now: %s", error.__class__.__name__)

    renewer = threading.Thread(target=renew, name="lease", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        ended.set()
        renewer.join(timeout=5)
