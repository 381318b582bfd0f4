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
from store import outcomes
from store.errors import Superseded
from store.outcomes import Code, Detail, Failure
from store.publisher import LogWriter
from store.requests import RequestRecord
from tasks.runtime import EngineHost

log = logging.getLogger(__name__)


@dataclass
class Report:
    """What the outcome log line tells. Times in seconds."""

    outcome: str = "error"
    first_token: float | None = None
    chunks: int = 0
    usage: dict[str, int] | None = None


async def serve(host: EngineHost, record: RequestRecord, attempt: int) -> Report:
    """Serve the request and end its log, whatever happens. Never raises but for cancellation."""
    report = Report()
    writer = host.publisher.writer(record.id, attempt)
    try:
        async with asyncio.timeout(record.deadline - time.time()):
            await writer.open({"worker": host.worker_name})
            report = await _answer(host, record, writer)
    except Superseded as error:
        log.warning("Request was taken over or has ended elsewhere: %s", error)
        report.outcome = "superseded"
    except BaseException as error:
        failure = _failure(host, record, error)
        report.outcome = failure.code
        await _end(writer, failure)
        if not isinstance(error, Exception) and not host.abandoned:
            raise
    return report


async def _answer(host: EngineHost, record: RequestRecord, writer: LogWriter) -> Report:
    engine = host.engines.get(record.model)
    if engine is None:
        raise _NotServed(record.model)
    if record.kind == RequestRecord.OPENAI:
        return await _relay_http(engine, record, writer)
    return await _generate(engine, record, writer, host.settings)


async def _generate(engine: Engine, record: RequestRecord, writer: LogWriter, settings: Settings) -> Report:
    report = Report()
    started = time.monotonic()
    async with aclosing(engine.generate(_request(record, settings))) as chunks:
        async for chunk in chunks:
            if report.first_token is None:
                report.first_token = time.monotonic() - started
            report.chunks += 1
            writer.text(chunk.text, chunk.token_ids)
            if chunk.usage is not None:
                report.usage = chunk.usage.to_dict()
                await writer.end(outcomes.finished(chunk.finish_reason, report.usage))
    report.outcome = "finished"
    return report


async def _relay_http(engine: Engine, record: RequestRecord, writer: LogWriter) -> Report:
    report = Report()
    started = time.monotonic()
    call = HttpCall(record.id.removeprefix("gen-"), record.payload["path"], record.body)
    async with aclosing(engine.openai(call)) as parts:
        async for part in parts:
            if isinstance(part, HttpStart):
                writer.head({"status": part.status, "content_type": part.content_type})
                continue
            if report.first_token is None:
                report.first_token = time.monotonic() - started
            report.chunks += 1
            writer.body(part)
    await writer.end(outcomes.finished(None, None))
    report.outcome = "finished"
    return report


def _request(record: RequestRecord, settings: Settings) -> GenerateRequest:
    payload = record.payload
    return GenerateRequest(
        request_id=record.id,
        prompt=payload["prompt"],
        sampling=Sampling(**payload["sampling"]),
        adapter=_adapter_path(payload.get("adapter"), settings.adapters_root),
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


def _failure(host: EngineHost, record: RequestRecord, error: BaseException) -> Failure:
    """Turn what went wrong into the words the client reads."""
    match error:
        case InvalidRequest():
            detail = Detail(error.kind, error.field, error.description)
            return Failure(Code.INVALID_REQUEST, error.description, (detail,))
        case TimeoutError():
            return outcomes.deadline_passed(record.deadline - record.created)
        case EngineDead():
            log.error("The engine failed: %s", error)
            return Failure(Code.INSUFFICIENT_RESOURCES, "The engine stopped working during the request")
        case _NotServed():
            return Failure(Code.MODEL_NOT_READY, f"Model '{record.model}' is not served by this worker any more")
        case asyncio.CancelledError():
            return Failure(Code.INSUFFICIENT_RESOURCES, "The worker was stopped before the request had finished")
        case _:
            log.error("Request failed for an unknown reason", exc_info=error)
            return Failure(Code.INTERNAL_ERROR, "The request failed inside the worker")


async def _end(writer: LogWriter, failure: Failure) -> None:
    """Write the terminal entry; when even that is refused or late, followers have their own deadline."""
    try:
        async with asyncio.timeout(10):
            await writer.end(outcomes.failed(failure))
    except (Superseded, TimeoutError) as error:
        log.warning("The end of the request could not be written: %r", error)


def outcome_fields(report: Report, seconds: float) -> dict[str, Any]:
    """The ``extra`` of the outcome log line."""
    return {
        "outcome": report.outcome,
        "duration_ms": round(seconds * 1000),
        "ttft_ms": None if report.first_token is None else round(report.first_token * 1000),
        "chunks": report.chunks,
        **(report.usage or {}),
    }
