"""A call of the OpenAI-compatible surface on an engine: its answer into the log, and on from where another left it."""

import json
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

from engines.base import Engine
from engines.errors import CannotContinue
from engines.types import HttpCall, HttpPart, HttpStart, Usage
from store.token_log import outcomes
from store.token_log.log import LogSnapshot
from store.token_log.writer import LogWriter
from tasks.worker.inference.kept_response import KeptResponse
from tasks.worker.inference.portions import decode_portions, encode_portions
from tasks.worker.inference.seam import DoesNotFit, Seam

log = logging.getLogger(__name__)

#: How an error begins in a stream: with OpenAI, and with Anthropic.
_ERROR_EVENTS = (b'data: {"error"', b"event: error\n")
_STREAM = "text/event-stream"


async def relay(
    engine: Engine,
    call: HttpCall,
    writer: LogWriter,
    delivered: LogSnapshot,
    count: Callable[[float], None],
    refused: Callable[[], None],
    kept: KeptResponse | None = None,
) -> None:
    """Write the answer to a call. ``count`` is told of each part with the time of the beginning, ``refused`` of errors.
    ``kept`` keeps the answer beyond its log.

    Raises ``CannotContinue``, and what the engine raises.
    """
    seam: Seam | None = None
    if delivered.has_body:
        if not delivered.content_type.startswith(_STREAM):
            # It is one part, and whole.
            if kept is not None:
                kept.observe(delivered.body, streamed=False)
                await kept.save()
            await writer.end(outcomes.finished(None, usage_of(delivered.body)))
            return
        # What came before the first token, and answers of which no tokens are kept, are made once more from the start.
        call = replace(call, delivered=decode_portions(delivered.body_tokens))
        seam = Seam(delivered.body)
        if kept is not None:
            kept.observe_delivered(delivered.body)
    elif delivered.unfinished_tokens:
        call = replace(call, delivered=decode_portions(delivered.unfinished_tokens))
    started, status, streamed = time.monotonic(), 200, delivered.content_type.startswith(_STREAM)
    async with aclosing(engine.openai(call)) as parts:
        async for part in parts:
            if isinstance(part, HttpStart):
                status, streamed = part.status, part.content_type.startswith(_STREAM)
                if part.status >= 400:
                    if seam is not None:
                        raise CannotContinue
                    refused()
                if not delivered.has_head:
                    writer.head({"status": part.status, "content_type": part.content_type})
                continue
            if seam is not None:
                joined = _join(seam, part)
                if joined is None:
                    continue
                part = joined
            if part.data.startswith(_ERROR_EVENTS):
                refused()
            if kept is not None and status == 200 and kept.observe(part.data, streamed):
                # Before the client can see it, and go on from it.
                await kept.save()
            count(started)
            writer.body(part.data, encode_portions(part.portions) if part.portions else "")
    if seam is not None and not seam.passed:
        raise CannotContinue
    await writer.end(outcomes.finished(None, call.meter.usage(), call.meter.timing()))


def _join(seam: Seam, part: HttpPart) -> HttpPart | None:
    """Return what of a part is new; its tokens are in the log where its bytes are. Raises ``CannotContinue``."""
    try:
        data = seam.join(part.data)
    except DoesNotFit:
        log.warning("The answer cannot be gone on with: it would say something else than was delivered")
        raise CannotContinue from None
    return HttpPart(data, part.portions) if data else None


def usage_of(body: bytes) -> dict[str, int] | None:
    """Return the counts that a whole answer tells, in OpenAI's words or Anthropic's; None where it tells none."""
    try:
        usage = json.loads(body)["usage"]
        prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
        completion = usage.get("completion_tokens", usage.get("output_tokens", 0))
        return Usage(int(prompt), int(completion or 0)).to_dict()
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
