"""The life of a request at the front door, the same for every face: begin, follow, end."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError

from engines.errors import UnknownModel
from engines.registry import ModelSpec
from store import outcomes, streams
from store.entries import LAST_SEQUENCE, Entry, EntryId, Kind, encode
from store.hub import Follower
from store.presence import Fleet
from store.requests import RequestRecord
from tasks import client
from webapp import errors
from webapp.services import Services

log = logging.getLogger(__name__)

#: A worker ends a request at its deadline; a front door that has heard nothing this long
#: after it ends it itself. Seconds.
_DEADLINE_GRACE_SECONDS = 5.0


def resolve(services: Services, model: str, field: str) -> ModelSpec:
    """Return the model a client named. Raises ``ApiError`` (404)."""
    try:
        return services.registry.resolve(model)
    except UnknownModel:
        raise errors.model_not_found(model, field) from None


def require_worker(services: Services, spec: ModelSpec) -> tuple[Fleet, str]:
    """Return the fleet and the queue that takes requests for the model. Raises ``ApiError`` (503)."""
    fleet = services.presence.fleet()
    queue = client.queue_for(fleet, spec.id)
    if queue is None:
        raise errors.model_not_ready(spec.id, loading=bool(fleet.loading(spec.id)))
    return fleet, queue


@contextmanager
def begin(services: Services, record: RequestRecord, queue: str) -> Iterator[Follower]:
    """Follow the request's log, then send it to a worker: nothing can be missed."""
    services.requests.save(record)
    with services.hub.follow(record.id) as follower:
        client.enqueue(record, queue)
        yield follower


def follow(services: Services, record: RequestRecord, follower: Follower) -> Iterator[Entry | None]:
    """Yield the log's entries, the terminal one last; None for every ``keepalive`` of silence."""
    for entry in follower.entries(idle=services.settings.keepalive):
        yield entry
        if entry is None and time.time() > record.deadline + _DEADLINE_GRACE_SECONDS:
            yield _end_late(services, record)
            return


def _end_late(services: Services, record: RequestRecord) -> Entry:
    """End a request whose worker did not, and return how it ended."""
    data = outcomes.failed(outcomes.deadline_passed(record.deadline - record.created))
    try:
        if not streams.end(services.redis, record.id, services.settings.stream_ttl, data):
            entries = streams.read(services.redis, record.id)
            return entries[-1]
    except (RedisError, OSError) as error:
        log.warning("The end of a late request could not be written: %s", error)
    return Entry(EntryId(1, LAST_SEQUENCE), Kind.END, encode(data))
