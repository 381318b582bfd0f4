"""The messages of ``StreamPredict``: requests into bodies, entries into responses."""

import time
from collections.abc import Iterator
from typing import Any

from store.redis.request_records import RequestRecord
from store.token_log.entries import Entry
from webapp.rpc import ai_service_pb2 as pb
from webapp.schemas.loading import json_object

#: Names of the native interface, and the proto's.
_GENERATION = {
    "maxNewTokens": "max_new_tokens",
    "temperature": "temperature",
    "topP": "top_p",
    "repetitionPenalty": "repetition_penalty",
    "seed": "seed",
    "topK": "top_k",
    "minP": "min_p",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
}


class MessageWriter:
    """Makes one request's messages."""

    def __init__(self, record: RequestRecord, chunks_before: int, arrived: float) -> None:
        """``arrived`` is when the request came (``time.monotonic``)."""
        self._common = pb.StreamPredictResponse(trace_id=record.trace_id, stream_id=record.id)
        self._arrived = arrived
        self._next_index = chunks_before
        self._first_at = 0.0
        self._first_tokens = 0
        self._tokens = 0

    def text(self, entries: list[Entry]) -> Any:
        """One message for all of the entries."""
        now = time.monotonic()
        count = sum(entry.token_count for entry in entries)
        self._tokens += count
        if not self._first_at:
            self._first_at, self._first_tokens = now, count
        chunk = "".join(entry.json()["text"] for entry in entries)
        message = self._message(now, entries[-1], chunk=chunk, index=self._next_index)
        self._next_index += 1
        return message

    def end(self, entry: Entry) -> Any:
        """The last message of a request that did not fail."""
        end = entry.json()
        usage = end["usage"] or {}
        values = {"finish_reason": end["reason"] or "", "prompt_tokens": usage.get("prompt_tokens", 0)}
        message = self._message(time.monotonic(), entry, end_of_stream=True, index=self._next_index, **values)
        if "completion_tokens" in usage:
            message.completion_tokens = usage["completion_tokens"]
        return message

    def _message(self, now: float, entry: Entry, **values: Any) -> Any:
        took = now - self._first_at
        rate = (self._tokens - self._first_tokens) / took if self._first_at and took > 0 else 0.0
        message = pb.StreamPredictResponse()
        # What is the same in every message is copied, not set anew.
        message.CopyFrom(self._common)
        message.resume_token = str(entry.id)
        message.ttft_ms = (self._first_at - self._arrived) * 1000 if self._first_at else 0.0
        message.tokens_per_sec = rate
        message.completion_tokens = self._tokens
        for name, value in values.items():
            setattr(message, name, value)
        return message


def merge(items: list[Any]) -> Iterator[Any]:
    """Yield what is to be sent for ``items``: chunks that waited for the same request leave as one.

    An item is a pair of a writer and its entry, or anything else, which is yielded as it is.
    """
    texts: dict[MessageWriter, list[Entry]] = {}
    for item in items:
        if isinstance(item, tuple):
            writer, entry = item
            if not entry.terminal:
                texts.setdefault(writer, []).append(entry)
                continue
            if writer in texts:
                yield writer.text(texts.pop(writer))
            yield writer.end(entry)
        else:
            yield from (writer.text(entries) for writer, entries in texts.items())
            texts.clear()
            yield item
    yield from (writer.text(entries) for writer, entries in texts.items())


def to_body(request: Any) -> dict[str, Any]:
    """Return a ``StreamPredictRequest`` as a body of the native interface; what is unset is left out.

    Raises ``InvalidRequest``.
    """
    given, extra = request.generation, request.metadata
    metadata = {"traceId": extra.trace_id, "tenant": extra.tenant, "playerId": extra.player_id, "locale": extra.locale}
    generation = {ours: getattr(given, name) for ours, name in _GENERATION.items() if given.HasField(name)}
    if given.stop:
        generation["stop"] = list(given.stop)
    if given.response_format:
        generation["responseFormat"] = json_object(given.response_format, "'generation.response_format'")
    body: dict[str, Any] = {
        "modelId": request.model_id,
        "priority": request.priority,
        "workerHint": request.worker_hint,
        "generation": generation,
        "metadata": {name: value for name, value in metadata.items() if value},
    }
    if request.messages:
        body["messages"] = [{"role": each.role, "content": each.content} for each in request.messages]
    if request.prompt or not request.messages:
        body["prompt"] = request.prompt
    if request.adapter:
        body["adapter"] = request.adapter
    return body
