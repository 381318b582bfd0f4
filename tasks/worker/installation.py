"""A worker belongs to one installation, and ends at once where another one uses its prefix in Redis."""

import logging

import redis
from celery.exceptions import WorkerShutdown
from sqlalchemy.orm import Session, sessionmaker

from store.installation import InstallationClaim, PrefixTakenError

log = logging.getLogger(__name__)

#: Exit status of a worker that cannot work where it was started.
EX_UNAVAILABLE = 69


def require_installation(client: redis.Redis, sessions: sessionmaker[Session]) -> None:
    """Raise ``WorkerShutdown`` where the prefix is another installation's."""
    try:
        InstallationClaim(client, sessions).require()
    except PrefixTakenError as error:
        log.critical("The worker cannot work: %s", error)
        raise WorkerShutdown(EX_UNAVAILABLE) from error
