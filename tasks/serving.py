"""One request, from its record to the end of its token log. Runs on the engine's loop."""

import asyncio
import logging
import time
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.base import Engine
from engines.errors import EngineDead, InvalidRequest
from engines.types import GenerateRequest, HttpCall, HttpStart, Sampling
from settings import Settings
from store import names, outcomes
from store.entries import Outcome, Reason
from store.errors import Superseded
from store.outcomes import Code, Detail, Failure
from store.requests import RequestRecord
from store.streams import Delivered
from store.writer import LogWriter
from tasks.runs import Run, Stop
from tasks.runtime import EngineHost

log = logging.getLogger(__name__)

#: How long a task waits for a Redis that is away; then the front door sends it again. Seconds.
_LOAD_TIMEOUT_SECONDS = 60.0
#: How long the closing entry may take to reach Redis. Seconds.
_CLOSE_TIMEOUT_SECONDS = 10.0


@dataclass
class Report:
    """What the outcome log line tells. Times in seconds."""

    outcome: str = "error"
    first_token: float | None = None
    chunks: int = 0
    usage: dict[str, int] | None = None

    def count(self, started: float) -> None:
        if self.first_token is None:
            self.first_token = time.monotonic() - started
        self.chunks += 1


async def take(host: EngineHost, request_id: str, attempt: int) -> tuple[RequestRecord, LogWriter] | None:
    """Take a request over for this attempt: its record, and a log that earlier attempts cannot write any more.

    None when the record has expired, another worker was faster, or Redis stays away.
    """
    fields = {"request_id": request_id}
    writer = host.publisher.writer(request_id, attempt, int(host.settings.request_timeout))
    try:
        async with asyncio.timeout(_LOAD_TIMEOUT_SECONDS):
            text, _ = await asyncio.gather(
                host.publisher.insist(lambda: host.publisher.commands.execute("GET", names.request(request_id))),
                writer.open({"worker": host.incarnation}),
            )
    except TimeoutError:
        log.error("The request cannot be taken over, Redis is away", extra=fields)
        return None
    except Superseded as error:
        log.warning("Request was taken over or has ended elsewhere: %s", error, extra=fields)
        return None
    if text is None:
        log.warning("The request's record is gone, nothing to serve", extra=fields)
        return None
    return RequestRecord.from_json(text), writer


async def serve(host: EngineHost, record: RequestRecord, writer: LogWriter) -> Report:
    """Serve one attempt of a request and close it in the log, whatever happens."""
    report = Report()
    task = asyncio.current_task()
    assert task is not None
    run = Run(record, writer, task)
    host.runs.add(run)
    try:
        async with asyncio.timeout(record.deadline - time.time()):
            before = Delivered(()) if writer.attempt == 1 else await host.publisher.delivered(record.id)
            await _answer(host, run, before, report)
        report.outcome = "finished"
    except Superseded as error:
        log.warning("Request was taken over or has ended elsewhere: %s", error)
        report.outcome = "superseded"
    except asyncio.CancelledError:
        if run.stopped is None:
            raise
        task.uncancel()
        report.outcome = await _close(host, run, run.stopped)
    except Exception as error:
        if isinstance(error, EngineDead):
            host.wake.set()
        report.outcome = await _close(host, run, error)
    finally:
        run.writer.leave()
        host.runs.remove(run)
    report.usage = run.usage
    return report


async def _answer(host: EngineHost, run: Run, before: Delivered, report: Report) -> None:
    engine = host.engines.get(run.record.model)
    if engine is None:
        raise _NotServed(run.record.model)
    if engine.dead:
        raise _EngineGone
    if run.record.kind == RequestRecord.OPENAI:
        await _relay_http(host, engine, run, before, report)
    else:
        run.writer.skip(before.next_index)
        await _generate(engine, run, _request(run, host.settings, before), report)


async def _generate(engine: Engine, run: Run, request: GenerateRequest, report: Report) -> None:
    started = time.monotonic()
    async with aclosing(engine.generate(request)) as chunks:
        async for chunk in chunks:
            report.count(started)
            run.usage = chunk.usage.to_dict()
            run.writer.text(chunk.text, chunk.token_ids)
            if chunk.finish_reason is not None:
                await run.writer.end(outcomes.finished(chunk.finish_reason, run.usage))


async def _relay_http(host: EngineHost, engine: Engine, run: Run, before: Delivered, report: Report) -> None:
    if before.has_body:
        raise _CannotContinue
    started = time.monotonic()
    call = HttpCall(
        run.record.id.removeprefix("gen-"),
        run.record.payload["path"],
        run.record.body,
        _adapter_path(run.record.payload.get("adapter"), host.settings.adapters_root),
    )
    async with aclosing(engine.openai(call)) as parts:
        async for part in parts:
            if not isinstance(part, HttpStart):
                report.count(started)
                run.writer.body(part)
            elif not before.has_head:
                run.writer.head({"status": part.status, "content_type": part.content_type})
    await run.writer.end(outcomes.finished(None, None))


def _request(run: Run, settings: Settings, before: Delivered) -> GenerateRequest:
    record, payload = run.record, run.record.payload
    return GenerateRequest(
        # An older attempt may still run on the same engine.
        request_id=f"{record.id}.{run.writer.attempt}",
        prompt=payload["prompt"],
        sampling=Sampling(**payload["sampling"]),
        adapter=_adapter_path(payload.get("adapter"), settings.adapters_root),
        priority=record.priority,
        delivered=before.tokens,
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


class _CannotContinue(Exception):
    """Part of an answer was delivered that no other worker can continue exactly."""


async def _close(host: EngineHost, run: Run, why: Exception | Stop) -> str:
    """End the request, or let go of it so that another worker goes on. Returns the outcome's name."""
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_SECONDS):
            if reason := _release_reason(run, why):
                await run.writer.release({"reason": reason, "usage": run.usage})
                return f"released: {reason}"
            if why is Stop.CANCELLED or why is Stop.CLIENT_GONE:
                await run.writer.end(outcomes.cancelled(run.usage))
                return Outcome.CANCELLED
            failure = _failure(run.record, why)
            await run.writer.end(outcomes.failed(failure, run.usage))
            return failure.code
    except (Superseded, TimeoutError) as error:
        # Followers have a deadline of their own.
        log.warning("The request could not be closed in its log: %r", error)
        return "superseded"


def _release_reason(run: Run, why: Exception | Stop) -> str | None:
    """Return why the request is let go of; None when this is its end."""
    if why is Stop.DRAIN or isinstance(why, _EngineGone):
        return Reason.DRAIN
    if isinstance(why, EngineDead):
        log.error("The engine failed: %s", why)
        return Reason.ENGINE_DEAD
    # Only a native request can be taken up again by its client.
    if why is Stop.CLIENT_GONE and run.record.kind == RequestRecord.GENERATE:
        return Reason.CLIENT_GONE
    return None


def _failure(record: RequestRecord, error: Exception | Stop) -> Failure:
    """Turn what went wrong into the words the client reads."""
    match error:
        case InvalidRequest():
            detail = Detail(error.kind, error.field, error.description)
            return Failure(Code.INVALID_REQUEST, error.description, (detail,))
        case TimeoutError():
            return outcomes.deadline_passed(record.deadline - record.created)
        case _NotServed():
            return Failure(Code.MODEL_NOT_READY, f"Model '{record.model}' is not served by this worker any more")
        case _CannotContinue():
            return Failure(
                Code.INSUFFICIENT_RESOURCES,
                "The worker was lost in the middle of the answer, and this kind of answer cannot be continued",
            )
        case _:
            log.error("Request failed for an unknown reason", exc_info=error if isinstance(error, Exception) else None)
            return Failure(Code.INTERNAL_ERROR, "The request failed inside the worker")


def outcome_fields(report: Report, seconds: float) -> dict[str, Any]:
    """The ``extra`` of the outcome log line."""
    return {
        "outcome": report.outcome,
        "duration_ms": round(seconds * 1000),
        "ttft_ms": None if report.first_token is None else round(report.first_token * 1000),
        "chunks": report.chunks,
        **(report.usage or {}),
    }
