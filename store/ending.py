"""The end of a request that no worker writes: with it, as with any, goes the bill."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import redis

from store.redis import keys as redis_keys
from store.redis.request_records import RequestRecord
from store.token_budget.settlement import settlement
from store.token_log import log as token_log
from store.token_log import outcomes
from store.token_log.entries import Entry, Kind
from store.token_log.log import entries_from_rows
from store.usage_bill import Bill

log = logging.getLogger(__name__)

#: Keys that one step of a search looks at.
_STEP = 1000


def delivered_usage(client: redis.Redis, record: RequestRecord) -> dict[str, int] | None:
    """Return what was delivered of a request that no worker ends.

    Only a worker knows what its prompt came to: one that let go has said it, of another it counts as nothing.
    """
    snapshot = token_log.snapshot(client, record.id)
    count = snapshot.delivered_tokens
    told = [entry.json().get("usage") or {} for entry in snapshot.entries if entry.kind == Kind.RELEASE]
    prompt = max((usage.get("prompt_tokens", 0) for usage in told), default=0)
    if not count and not prompt:
        return None
    return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}


def end_request(client: redis.Redis, record: RequestRecord, ttl: int, data: dict[str, Any]) -> bool:
    """End a request's log from outside its worker, and tell what it used. False when it had ended."""
    bill = Bill.of(record, data["outcome"], data.get("usage"))
    settled = settlement(record, data.get("usage"), final=True)
    return token_log.end(client, record.id, ttl, data, bill.to_json(), settled)


def end_forgotten(client: redis.Redis, ttl: int, grace: float) -> int:
    """End the requests that nobody ends any more, and return how many; raises ``RedisError``.

    Their worker is gone, or let go for a client that never came back, nobody follows them, and their deadline lies
    more than ``grace`` seconds back. So that what they used is counted before the log expires.
    """
    ended = 0
    for request_id, last in _unended(client):
        text: Any = client.get(redis_keys.request(request_id))
        record = RequestRecord.from_json(text) if text else None
        # A line of a batch that gave way waits for its turn, however long that takes; its runner ends it.
        if record is None or record.background or time.time() < record.deadline + grace:
            continue
        usage = last.json().get("usage") if last.kind == Kind.RELEASE else None
        usage = usage or delivered_usage(client, record)
        if last.kind == Kind.RELEASE:
            data = outcomes.cancelled(usage)
        else:
            data = outcomes.failed(outcomes.deadline_passed(record.deadline - record.created), usage)
        if end_request(client, record, ttl, data):
            ended += 1
            log.warning("A request that nobody ended is ended", extra=record.log_fields)
    return ended


def _unended(client: redis.Redis) -> Iterator[tuple[str, Entry]]:
    """Yield the requests whose log has not ended, and the log's last entry."""
    beginning = redis_keys.log("")
    for names in _steps(client, f"{_escaped(beginning)}*"):
        with client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.xrevrange(name, count=1)
            rows = pipeline.execute()
        for name, found in zip(names, rows, strict=True):
            entries = entries_from_rows(found)
            if entries and not entries[0].terminal:
                yield name.decode().removeprefix(beginning), entries[0]


def _steps(client: redis.Redis, pattern: str) -> Iterator[list[bytes]]:
    cursor: Any = 0
    while True:
        found: Any = client.scan(cursor, match=pattern, count=_STEP, _type="stream")
        cursor, names = found
        if names:
            yield names
        if not cursor:
            return


def _escaped(text: str) -> str:
    """A prefix may hold what has a meaning in a pattern."""
    return "".join(f"\\{letter}" if letter in "*?[]\\^-" else letter for letter in text)
