"""One request, from its record to the end of its token log. Runs on the engine's loop."""

import asyncio
import logging
import time
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.base import Engine
from engines.errors import CannotContinue, EngineDead, InvalidRequest
from engines.types import GenerateRequest, HttpCall, Sampling
from settings import Settings
from store.errors import Superseded
from store.redis.request_records import RequestRecord, load_batched
from store.redis.responses import Place
from store.token_budget.settlement import NOTHING, Settlement, settlement
from store.token_log import outcomes
from store.token_log.entries import Kind, Outcome, Reason
from store.token_log.log import LogSnapshot
from store.token_log.outcomes import Code, Detail, Failure
from store.token_log.writer import LogWriter
from store.usage_bill import REFUSED, RELEASED, Bill
from tasks.worker.engine_host import EngineHost
from tasks.worker.inference.active_requests import ActiveRequest, StopReason
from tasks.worker.inference.http_relay import relay
from tasks.worker.inference.kept_response import KeptResponse
from tasks.worker.inference.portions import encode_portions

log = logging.getLogger(__name__)

#: How long a task waits for a Redis that is away; then the front door sends it again. Seconds.
_LOAD_TIMEOUT_SECONDS = 60.0
#: How long the closing entry may take to reach Redis. Seconds.
_CLOSE_TIMEOUT_SECONDS = 10.0


@dataclass
class ServedRequest:
    """What the outcome log line tells. Times in seconds."""

    outcome: str = "error"
    first_token: float | None = None
    chunks: int = 0
    usage: dict[str, int] | None = None

    def count(self, started: float) -> None:
        if self.first_token is None:
            self.first_token = time.monotonic() - started
        self.chunks += 1


async def claim_request(host: EngineHost, request_id: str, attempt: int) -> tuple[RequestRecord, LogWriter] | None:
    """Take a request over for this attempt: its record, and a log that earlier attempts cannot write any more.

    None when the record has expired, another worker was faster, or Redis stays away.
    """
    fields = {"request_id": request_id}
    writer = host.publisher.writer(request_id, attempt, int(host.settings.request_timeout))
    try:
        async with asyncio.timeout(_LOAD_TIMEOUT_SECONDS):
            record, _ = await asyncio.gather(
                host.publisher.retry_until_available(lambda: load_batched(host.publisher.commands, request_id)),
                writer.open({"worker": host.instance_id}),
            )
    except TimeoutError:
        log.error("The request cannot be taken over, Redis is away", extra=fields)
        return None
    except Superseded as error:
        log.warning("Request was taken over or has ended elsewhere: %s", error, extra=fields)
        return None
    if record is None:
        log.warning("The request's record is gone, nothing to serve", extra=fields)
        return None
    return record, writer


async def serve(host: EngineHost, record: RequestRecord, writer: LogWriter) -> ServedRequest:
    """Serve one attempt of a request and close it in the log, whatever happens."""
    served = ServedRequest()
    task = asyncio.current_task()
    assert task is not None
    active = ActiveRequest(record, writer, task)
    writer.account = lambda kind, data: (_bill(active, served, kind, data).to_json(), _settlement(record, kind, data))
    host.active_requests.add(active)
    try:
        async with asyncio.timeout(record.deadline - time.time()):
            delivered = LogSnapshot(()) if writer.attempt == 1 else await host.publisher.snapshot(record.id)
            await _answer(host, active, delivered, served)
        if served.outcome != "refused":
            served.outcome = "finished"
    except Superseded as error:
        log.warning("Request was taken over or has ended elsewhere: %s", error)
        served.outcome = "superseded"
    except asyncio.CancelledError:
        if active.stop_reason is None:
            raise
        task.uncancel()
        served.outcome = await _close(host, active, active.stop_reason)
    except Exception as error:
        if isinstance(error, EngineDead):
            host.state_changed.set()
        served.outcome = await _close(host, active, error)
    finally:
        active.writer.abandon()
        host.active_requests.remove(active)
    served.usage = active.usage
    return served


async def _answer(host: EngineHost, active: ActiveRequest, delivered: LogSnapshot, served: ServedRequest) -> None:
    engine = host.models.engine_of(active.record.model)
    if engine is None:
        raise _NotServed(active.record.model)
    if engine.dead:
        raise _EngineGone
    if active.record.kind == RequestRecord.OPENAI:
        await _relay_http(host, engine, active, delivered, served)
    else:
        active.writer.start_at_index(delivered.next_index)
        await _generate(engine, active, _request(active, host.settings, delivered), served)


async def _generate(engine: Engine, active: ActiveRequest, request: GenerateRequest, served: ServedRequest) -> None:
    started = time.monotonic()
    async with aclosing(engine.generate(request)) as chunks:
        async for chunk in chunks:
            served.count(started)
            active.usage, active.cached_tokens = chunk.usage.to_dict(), chunk.usage.cached_tokens
            active.writer.text(chunk.text, chunk.token_ids)
            if chunk.finish_reason is not None:
                await active.writer.end(outcomes.finished(chunk.finish_reason, active.usage))


async def _relay_http(
    host: EngineHost, engine: Engine, active: ActiveRequest, delivered: LogSnapshot, served: ServedRequest
) -> None:
    call = HttpCall(
        active.record.id.removeprefix("gen-"),
        active.record.payload["path"],
        active.record.body,
        _adapter_path(active.record.payload.get("adapter"), host.settings.adapters_root),
        active.record.payload.get("asked_name"),
        active.record.detached,
    )

    active.meter = call.meter

    def refuse() -> None:
        served.outcome = "refused"

    kept_as, kept = active.record.payload.get("kept_as"), None
    if kept_as is not None:
        settings = host.settings
        place = Place(kept_as, active.record.tenant, settings.response_ttl, settings.max_responses)
        kept = KeptResponse(host.publisher, place)
    try:
        await relay(engine, call, active.writer, delivered, served.count, refuse, kept)
    finally:
        active.usage = call.meter.usage()
        active.unfinished_tokens = encode_portions(call.unfinished)


def _bill(active: ActiveRequest, served: ServedRequest, kind: str, data: dict[str, Any]) -> Bill:
    """Return what a request used, where it is closed with ``data``."""
    final = kind == Kind.END
    outcome = data["outcome"] if final else RELEASED
    return Bill.of(
        active.record,
        REFUSED if served.outcome == REFUSED or _is_refusal(data) else outcome,
        data.get("usage"),
        attempt=active.writer.attempt,
        final=final,
        cached_tokens=active.cached_tokens if active.meter is None else active.meter.cached_tokens,
        ttft_ms=None if served.first_token is None else round(served.first_token * 1000),
    )


def _settlement(record: RequestRecord, kind: str, data: dict[str, Any]) -> Settlement:
    """Return how the token limits are settled: not at all where another worker goes on at once."""
    final = kind == Kind.END
    # For a client that left, and may come back, nothing is set aside.
    return settlement(record, data.get("usage"), final) if final or data["reason"] == Reason.CLIENT_GONE else NOTHING


def _is_refusal(data: dict[str, Any]) -> bool:
    return (data.get("error") or {}).get("code") == Code.INVALID_REQUEST


def _request(active: ActiveRequest, settings: Settings, delivered: LogSnapshot) -> GenerateRequest:
    record, payload = active.record, active.record.payload
    return GenerateRequest(
        # An older attempt may still run on the same engine.
        request_id=f"{record.id}.{active.writer.attempt}",
        prompt="" if payload.get("messages") else payload["prompt"],
        messages=tuple(payload.get("messages", ())),
        sampling=Sampling.from_dict(payload["sampling"]),
        adapter=_adapter_path(payload.get("adapter"), settings.adapters_root),
        priority=record.priority,
        delivered=delivered.tokens,
        answer_ceiling=payload.get("answer_ceiling"),
    )


def _adapter_path(name: str | None, root: Path) -> str | None:
    """Resolve a client's adapter name inside the adapters root. Raises ``InvalidRequest``."""
    if name is None:
        return None
    try:
        path = (root / name).resolve()
    except (OSError, ValueError):
        path = root
    if not path.is_relative_to(root.resolve()) or path == root.resolve():
        raise InvalidRequest("invalid_path", "adapter", "An adapter is named by its path inside the adapters folder")
    return str(path)


class _NotServed(Exception):
    """The request reached a worker that does not hold its model."""


class _EngineGone(Exception):
    """The engine was dead before the attempt began: the worker is about to leave, and is no victim of it."""


async def _close(host: EngineHost, active: ActiveRequest, reason: Exception | StopReason) -> str:
    """End the request, or release it so that another worker goes on. Returns the outcome's name."""
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_SECONDS):
            if release_reason := _release_reason(active, reason):
                released = {"reason": release_reason, "usage": active.usage}
                await active.writer.release(released, active.unfinished_tokens)
                return f"released: {release_reason}"
            if reason is StopReason.CANCELLED or reason is StopReason.CLIENT_GONE:
                await active.writer.end(outcomes.cancelled(active.usage))
                return Outcome.CANCELLED
            failure = _failure(active.record, reason)
            await active.writer.end(outcomes.failed(failure, active.usage))
            return failure.code
    except (Superseded, TimeoutError) as error:
        # Followers have a deadline of their own.
        log.warning("The request could not be closed in its log: %r", error)
        return "superseded"


def _release_reason(active: ActiveRequest, reason: Exception | StopReason) -> str | None:
    """Return why the request is released; None when this is its end."""
    if reason is StopReason.DRAIN or isinstance(reason, _EngineGone):
        return Reason.DRAIN
    if reason is StopReason.PREEMPTED:
        return Reason.PREEMPTED
    if isinstance(reason, _NotServed):
        return Reason.NOT_SERVED
    if isinstance(reason, EngineDead):
        log.error("The engine failed: %s", reason)
        return Reason.ENGINE_DEAD
    if reason is StopReason.CLIENT_GONE and active.record.resumable:
        return Reason.CLIENT_GONE
    return None


def _failure(record: RequestRecord, error: Exception | StopReason) -> Failure:
    """Turn what went wrong into the words the client reads."""
    match error:
        case InvalidRequest():
            detail = Detail(error.kind, error.field, error.description)
            return Failure(Code.INVALID_REQUEST, error.description, (detail,))
        case TimeoutError():
            return outcomes.deadline_passed(record.deadline - record.created)
        case StopReason.UNLOADED:
            return outcomes.unloaded(record.model)
        case CannotContinue():
            return Failure(
                Code.INSUFFICIENT_RESOURCES,
                "The worker was lost in the middle of the answer, and this kind of answer cannot be continued",
            )
        case _:
            log.error("Request failed for an unknown reason", exc_info=error if isinstance(error, Exception) else None)
            return Failure(Code.INTERNAL_ERROR, "The request failed inside the worker")


def outcome_fields(served: ServedRequest, seconds: float) -> dict[str, Any]:
    """The ``extra`` of the outcome log line."""
    return {
        "outcome": served.outcome,
        "duration_ms": round(seconds * 1000),
        "ttft_ms": None if served.first_token is None else round(served.first_token * 1000),
        "chunks": served.chunks,
        **(served.usage or {}),
    }
