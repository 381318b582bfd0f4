"""A worker that writes to the database belongs to its installation, and ends where another one has its prefix in Redis.

Inference workers need Redis alone, and may lie on hosts that do not reach the database.
"""

import logging

import redis
from celery.exceptions import WorkerShutdown
from sqlalchemy.orm import Session, sessionmaker

from store.installation import InstallationClaim, PrefixTakenError

log = logging.getLogger(__name__)

#: Exit status of a worker that cannot work where it was started.
EX_UNAVAILABLE = 69


def require_installation(client: redis.Redis, sessions: sessionmaker[Session]) -> None:
    """Hold the prefix as long as the process lives. Raise ``WorkerShutdown`` where it is another installation's."""
    try:
        InstallationClaim(client, sessions).hold()
    except PrefixTakenError as error:
        log.critical("The worker cannot work: %s", error)
        raise WorkerShutdown(EX_UNAVAILABLE) from error
