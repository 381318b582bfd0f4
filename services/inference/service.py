"""What a face does with a request: admit, open, resume, cancel. One call each."""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import redis

from services.access import Access
from services.context import RequestContext
from services.errors import RequestNotFound, UnknownEventId
from services.idempotency import Idempotency
from services.inference.admission import Admission
from services.inference.cancellation import Cancellation
from services.inference.failover import Failover
from services.inference.request_stream import DEADLINE_GRACE_SECONDS, RequestStream
from services.inference.routing import Route
from services.inference.submission import GenerationRequest, OpenAIRequest, Submission
from services.inference.watched_request import WatchedRequest
from services.lifecycle import Lifecycle
from services.limit_errors import TooManyRequests, TooManyTokens
from services.limits import Allowance, Limits
from services.metrics import RESUMES, STREAMS, StreamTimes
from services.token_limits import TokenAllowance, TokenLimits
from store.principal import Principal
from store.redis.request_records import RequestRecord, RequestStore
from store.token_log import log as token_log
from store.token_log.entries import START, EntryId, Kind
from store.token_log.follower import Follower
from store.token_log.hub import Hub
from store.token_log.log import LogSnapshot
from tasks.broker import submit


@dataclass(frozen=True)
class InferenceService:
    """Requests of clients, whatever face they come through. Errors are ``ServiceError``, and those of the stores."""

    client: redis.Redis
    hub: Hub
    requests: RequestStore
    access: Access
    limits: Limits
    token_limits: TokenLimits
    lifecycle: Lifecycle
    admission: Admission
    idempotency: Idempotency
    failover: Failover
    cancellation: Cancellation
    #: A stream that is still silent after this long yields None. Seconds.
    keepalive: float

    def admit(self, context: RequestContext, request: GenerationRequest) -> Submission:
        """Check what can be checked before a worker is asked."""
        return self.admission.admit(context, request)

    def admit_openai(self, context: RequestContext, request: OpenAIRequest) -> Submission:
        """As :meth:`admit`, for the OpenAI-compatible API."""
        return self.admission.admit_openai(context, request)

    @contextmanager
    def open(self, context: RequestContext, submission: Submission) -> Iterator[RequestStream]:
        """Send a request to a worker and follow it, or follow the one that its idempotency key began."""
        record, route = submission.record, submission.route
        with ExitStack() as stack:
            with self.idempotency.forget_on_error(submission.idempotency_name):
                principal = self.access.current(context.principal)
                if not record.background:
                    # A turn first: what is refused one costs none of the minute's requests.
                    stack.enter_context(self.limits.hold_stream(principal, record.id))
                if route is None:
                    self._count(context, principal, record)
                    stream = stack.enter_context(self._attach(context, record, START))
                else:
                    with self._counted(context, principal, record):
                        stream = stack.enter_context(self._submit(context, record, route))
            yield stream

    def start(self, context: RequestContext, submission: Submission) -> None:
        """Send a request that goes on without its client (``detached``)."""
        with self.idempotency.forget_on_error(submission.idempotency_name):
            principal, record = self.access.current(context.principal), submission.record
            if submission.route is None:
                self._count(context, principal, record)
                return
            with self._counted(context, principal, record):
                submit.submit(self.client, self.requests, record, submission.route.queue, attempt=1)
        self.failover.unattended.look_after(submission.record, submission.route.queue, submission.route.fleet)

    def look_after(self, request_id: str) -> None:
        """Let a request that nobody follows go on, where its worker is lost, or end, where its time is over.

        To be called when somebody asks how far it is.
        """
        record = self.requests.load(request_id)
        if record is None:
            return
        if time.time() > record.deadline + DEADLINE_GRACE_SECONDS:
            self.cancellation.end_at_deadline(record)
        else:
            self.failover.unattended.look_after(record)

    @contextmanager
    def resume(self, context: RequestContext, record: RequestRecord, after: EntryId) -> Iterator[RequestStream]:
        """Follow a request from after ``after``; one that was released is taken up again."""
        with (
            self.limits.hold_stream(self.access.current(context.principal), record.id),
            self._attach(context, record, after) as stream,
        ):
            RESUMES.inc()
            yield stream

    @contextmanager
    def take_up(self, context: RequestContext, request_id: str, preemptible: bool) -> Iterator[RequestStream]:
        """Go on with a line of a batch that gave way, and follow what comes from now on. Its time begins anew.

        Raises ``RequestNotFound`` where nothing is left of it.
        """
        record, entries = self.requests.load(request_id), token_log.read(self.client, request_id)
        if record is None or not entries or entries[-1].kind != Kind.RELEASE:
            raise RequestNotFound(request_id)
        now = time.time()
        payload = {**record.payload, "preemptible": preemptible}
        record = replace(record, created=now, deadline=now + record.deadline - record.created, payload=payload)
        with self.hub.follow(record.id, entries[-1].id) as follower, self.failover.watch(record) as watched:
            for entry in entries:
                watched.observe(entry)
            watched.held = False
            stream = self._stream(context, record, follower, watched)
            try:
                yield stream
            finally:
                stream.on_disconnect()

    def find(self, principal: Principal, request_id: str) -> RequestRecord:
        """Return a native request that the principal sees. Raises ``RequestNotFound`` for any other."""
        record = self.requests.load(request_id)
        if record is None or record.kind != RequestRecord.GENERATE:
            raise RequestNotFound(request_id)
        if not self.access.can_see(principal, record.tenant):
            raise RequestNotFound(request_id)
        return record

    def find_stream(self, principal: Principal, answer_id: str) -> RequestRecord:
        """Return the request of a streamed answer of ``/v1``, by the answer's id. Raises ``RequestNotFound``."""
        record = self.requests.load(request_of(answer_id))
        if record is None or record.kind != RequestRecord.OPENAI or not record.resumable:
            raise RequestNotFound(answer_id)
        if not self.access.can_see(principal, record.tenant):
            raise RequestNotFound(answer_id)
        return record

    def snapshot(self, record: RequestRecord) -> LogSnapshot:
        """Return what has been delivered of a request, and whether it has ended."""
        return self.cancellation.snapshot(record)

    def cancel(self, record: RequestRecord) -> None:
        """End a request for good. Ending one that has ended changes nothing."""
        self.cancellation.cancel(record)

    def end(self, request_id: str) -> None:
        """End a request that may still run; whoever calls has seen whose it is."""
        record = self.requests.load(request_id)
        if record is not None:
            self.cancel(record)

    @contextmanager
    def _counted(self, context: RequestContext, principal: Principal, record: RequestRecord) -> Iterator[None]:
        """Set a new request's tokens aside and count it, then let the block send it."""
        try:
            with self.token_limits.reserved(principal, record) as allowance:
                if allowance is not None:
                    context.on_tokens_counted(allowance)
                self._count(context, principal, record)
                yield
        except TooManyTokens as error:
            context.on_tokens_counted(TokenAllowance(error.per_minute, error.remaining, time.time() + error.wait))
            raise

    def _count(self, context: RequestContext, principal: Principal, record: RequestRecord) -> None:
        if record.background:
            return
        try:
            allowance = self.limits.count_request(principal)
        except TooManyRequests as error:
            context.on_counted(Allowance(error.per_minute, 0, error.reset))
            raise
        if allowance is not None:
            context.on_counted(allowance)

    @contextmanager
    def _submit(self, context: RequestContext, record: RequestRecord, route: Route) -> Iterator[RequestStream]:
        """Follow the request's log, then send it to a worker: nothing can be missed."""
        with (
            self.hub.follow(record.id, may_have_history=False) as follower,
            self.failover.watch(record, route.queue, route.fleet) as watched,
        ):
            submit.submit(self.client, self.requests, record, route.queue, attempt=1)
            stream = self._stream(context, record, follower, watched, times=StreamTimes(record))
            with STREAMS.track_inprogress():
                try:
                    yield stream
                finally:
                    stream.on_disconnect()

    @contextmanager
    def _attach(self, context: RequestContext, record: RequestRecord, after: EntryId) -> Iterator[RequestStream]:
        entries = token_log.read(self.client, record.id)
        if after != START:
            if not entries:
                raise RequestNotFound(record.id)
            if after > entries[-1].id:
                raise UnknownEventId
            if entries[-1].terminal and after == entries[-1].id:
                # The client has it all but the closing word: the last entry is given out once more.
                after = entries[-2].id if len(entries) > 1 else START
        with self.hub.follow(record.id, after) as follower, self.failover.watch(record) as watched:
            # What lies before ``after`` is not given out again, but failover has to know it.
            for entry in entries:
                watched.observe(entry)
            chunks_before = sum(1 for entry in entries if entry.kind == Kind.TEXT and entry.id <= after)
            stream = self._stream(context, record, follower, watched, chunks_before)
            with STREAMS.track_inprogress():
                try:
                    yield stream
                finally:
                    stream.on_disconnect()

    def _stream(
        self,
        context: RequestContext,
        record: RequestRecord,
        follower: Follower,
        watched: WatchedRequest,
        chunks_before: int = 0,
        times: StreamTimes | None = None,
    ) -> RequestStream:
        return RequestStream(
            context,
            record,
            follower,
            watched,
            access=self.access,
            cancellation=self.cancellation,
            hub=self.hub,
            lifecycle=self.lifecycle,
            keepalive=self.keepalive,
            chunks_before=chunks_before,
            times=times,
        )


def request_of(answer_id: str) -> str:
    """Return the id of the request that made an answer: ``chatcmpl-…``, ``cmpl-…``, ``resp_…``."""
    return f"gen-{re.split('[-_]', answer_id, maxsplit=1)[-1]}"


def parse_event_id(text: str) -> EntryId:
    """Parse the id of an event; '' is before all. Raises ``UnknownEventId``."""
    if not text:
        return START
    try:
        return EntryId.parse(text.strip())
    except ValueError:
        raise UnknownEventId from None
