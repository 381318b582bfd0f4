"""The life of a request at the front door, the same for every face: begin, follow, leave."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from redis.exceptions import RedisError

from engines.errors import UnknownModel
from engines.registry import ModelSpec
from store import control, outcomes, streams
from store.control import Command
from store.entries import LAST_SEQUENCE, START, Entry, EntryId, Kind, Reason, encode
from store.follower import Follower
from store.presence import Fleet
from store.requests import RequestRecord
from tasks import client
from webapp import errors, turns
from webapp.services import Services
from webapp.supervisor import Watch

log = logging.getLogger(__name__)

#: A worker ends a request at its deadline; a front door that has heard nothing this long
#: after it ends it itself. Seconds.
_DEADLINE_GRACE_SECONDS = 5.0
#: How often a silent stream looks whether its client is still there. Seconds.
_LOOK_SECONDS = 1.0
#: How long a worker may take to end a request that was cancelled. Seconds.
_CANCEL_SECONDS = 1.5


class ClientGone(Exception):
    """The client has left; nobody reads the answer."""


class ProcessStopping(Exception):
    """This process was told to stop; the request goes on, and can be followed elsewhere."""


@dataclass(frozen=True)
class Plan:
    """Where a request would go, as admitted."""

    fleet: Fleet
    queue: str


def resolve(services: Services, model: str, field: str) -> ModelSpec:
    """Return the model a client named. Raises ``ApiError`` (404)."""
    try:
        return services.registry.resolve(model)
    except UnknownModel:
        raise errors.model_not_found(model, field) from None


def admit(services: Services, spec: ModelSpec, hint: str = "") -> Plan:
    """Choose the queue for a request. Raises ``ApiError`` (503) without a worker or over the bound."""
    fleet = services.presence.fleet()
    queue = client.queue_for(fleet, spec.id, hint)
    if queue is None:
        # A worker may have become ready since the list was made.
        fleet = services.presence.fleet(fresh=True)
        queue = client.queue_for(fleet, spec.id, hint)
    if queue is None:
        raise errors.model_not_ready(spec.id, loading=bool(fleet.loading(spec.id)))
    bound = spec.max_pending or services.settings.max_queue_size
    waiting = services.backlog.pending(queue, bound)
    if waiting >= bound:
        raise errors.queue_full(spec.id, waiting, bound)
    return Plan(fleet, queue)


class Following:
    """One client's view of one request. Use it in ``with``; leave early and it lets go."""

    def __init__(self, services: Services, record: RequestRecord, follower: Follower, watch: Watch) -> None:
        self._services = services
        self._record = record
        self._follower = follower
        self._watch = watch
        self._ended = False
        #: Chunks that the client had before: the index of the next one.
        self.offset = 0
        #: Set when the request shall go on without this client.
        self.detached = False
        #: Whether a stopping process serves it to its end, as long as it is let.
        self.finish_when_stopping = False

    @property
    def position(self) -> EntryId:
        """The last entry that was given out."""
        return self._follower.position

    def shortcut(self, take: Callable[[Entry], bool]) -> None:
        """As ``Follower.shortcut``; for entries that are neither the first nor the last of an attempt.

        To be called once :meth:`entries` has yielded something.
        """
        self._follower.shortcut(take)

    def interrupt(self) -> None:
        """Let :meth:`entries` look at once whether the client is gone, from any thread."""
        self._follower.interrupt()

    def entries(self, gone: Callable[[], bool]) -> Iterator[Entry | None]:
        """Yield the log's entries, the terminal one last; None for every ``keepalive`` of silence.

        Raises ``ClientGone`` when ``gone`` says so, ``ProcessStopping`` when the process is
        told to stop.
        """
        turns.over()
        self._follower.shortcut(self._saw_opening)
        keepalive = self._services.settings.keepalive
        told = time.monotonic()
        for entry in self._follower.entries(idle=min(_LOOK_SECONDS, keepalive)):
            if entry is not None:
                self._watch.saw(entry)
                self._ended = entry.terminal
                yield entry
            elif gone():
                raise ClientGone
            if self._services.lifecycle.stopping and not self._ended and not self.finish_when_stopping:
                self.detached = True
                raise ProcessStopping
            if entry is not None:
                continue
            if time.time() > self._record.deadline + _DEADLINE_GRACE_SECONDS:
                self._ended = True
                yield self._end_late()
                return
            if time.monotonic() - max(told, self._follower.heard) >= keepalive:
                told = time.monotonic()
                yield None

    def _saw_opening(self, entry: Entry) -> bool:
        """Take note of an attempt's opening without waking the thread: there is nothing to send yet."""
        if entry.kind != Kind.OPEN:
            return False
        self._watch.saw(entry)
        return True

    def leave(self) -> None:
        """The client is not served any more: what nobody else reads is not generated."""
        if self._ended or self.detached:
            return
        try:
            if self._services.hub.others(self._follower):
                return
            let_go(self._services, self._record)
        except (RedisError, OSError) as error:
            # The worker itself notices that nobody follows.
            log.warning("The worker could not be told that the client left: %s", error)

    def _end_late(self) -> Entry:
        """End a request whose worker did not, and return how it ended."""
        record = self._record
        data = outcomes.failed(outcomes.deadline_passed(record.deadline - record.created))
        try:
            if not streams.end(self._services.redis, record.id, self._services.settings.stream_ttl, data):
                return streams.read(self._services.redis, record.id)[-1]
        except (RedisError, OSError) as error:
            log.warning("The end of a late request could not be written: %s", error)
        return Entry(EntryId(1, LAST_SEQUENCE), Kind.END, encode(data))


@contextmanager
def begin(services: Services, record: RequestRecord, plan: Plan) -> Iterator[Following]:
    """Follow the request's log, then send it to a worker: nothing can be missed."""
    with (
        services.hub.follow(record.id, begun=False) as follower,
        services.supervisor.watch(record, plan.queue, plan.fleet) as watch,
    ):
        client.submit(services.redis, services.requests, record, plan.queue, attempt=1)
        following = Following(services, record, follower, watch)
        try:
            yield following
        finally:
            following.leave()


@contextmanager
def attach(services: Services, record: RequestRecord, after: EntryId = START) -> Iterator[Following]:
    """Follow a request that was begun before, from behind ``after``; takes it up again if it was let go."""
    entries = streams.read(services.redis, record.id)
    if after != START:
        if not entries:
            raise errors.request_not_found(record.id)
        if after > entries[-1].id:
            raise errors.unknown_event_id()
        if entries[-1].terminal and after == entries[-1].id:
            # The client has it all but the closing word: the last entry is given out once more.
            after = entries[-2].id if len(entries) > 1 else START
    with services.hub.follow(record.id, after) as follower, services.supervisor.watch(record) as watch:
        # What lies before ``after`` is not given out again, but the supervisor has to know it.
        for entry in entries:
            watch.saw(entry)
        following = Following(services, record, follower, watch)
        following.offset = sum(1 for entry in entries if entry.kind == Kind.TEXT and entry.id <= after)
        try:
            yield following
        finally:
            following.leave()


def let_go(services: Services, record: RequestRecord) -> None:
    """Free what a request holds; a native one goes on when its client comes back."""
    if record.kind == RequestRecord.OPENAI:
        ended = streams.delivered(services.redis, record.id).last is None and streams.end(
            services.redis, record.id, services.settings.stream_ttl, outcomes.cancelled(None)
        )
        if not ended:
            control.send(services.redis, Command.CANCEL, record.id)
    elif not streams.release_unopened(services.redis, record.id, lifetime(services, record), Reason.CLIENT_GONE):
        control.send(services.redis, Command.RELEASE, record.id)


def lifetime(services: Services, record: RequestRecord) -> int:
    """Return how long what belongs to an unfinished request must be kept, in seconds."""
    return max(1, int(record.deadline - time.time())) + services.settings.stream_ttl


def cancel(services: Services, record: RequestRecord) -> None:
    """End a request for good. A running one is ended by its worker, which knows the usage.

    When it returns the log has ended.
    """
    last = streams.delivered(services.redis, record.id).last
    if last is not None and last.terminal:
        return
    if last is None or last.kind == Kind.RELEASE:
        usage = last.json().get("usage") if last else None
        streams.end(services.redis, record.id, services.settings.stream_ttl, outcomes.cancelled(usage))
        return
    control.send(services.redis, Command.CANCEL, record.id)
    ends = time.monotonic() + _CANCEL_SECONDS
    with services.hub.follow(record.id, last.id) as follower:
        for entry in follower.entries(idle=_CANCEL_SECONDS / 3):
            if entry is not None and entry.terminal:
                return
            if time.monotonic() > ends:
                break
    # Its worker does not answer: the log is closed here, and the worker will be refused.
    usage = streams.delivered(services.redis, record.id).partial_usage
    streams.end(services.redis, record.id, services.settings.stream_ttl, outcomes.cancelled(usage))
