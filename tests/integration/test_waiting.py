"""Who waits for a model: the messages in its queue, judged by what became of their requests."""

import asyncio
import time
from collections.abc import Iterator

import pytest
import redis

from launcher.redis_server import RedisServer
from store.redis import keys
from store.redis.client import connect, connect_async
from store.redis.request_records import RequestRecord, RequestStore, new_request_id
from store.token_log import log as token_log
from store.token_log import outcomes
from store.token_log.entries import Reason
from tasks.broker import queues, submit
from tasks.broker.names import model_queue
from tasks.broker.waiting import anybody_waits

MODEL = "waited-for"


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    opened = connect(redis_server.url)
    opened.flushdb()
    yield opened
    opened.close()


def send(client: redis.Redis, attempt: int = 1, deadline: float = 60) -> str:
    record = RequestRecord(
        id=new_request_id(),
        kind=RequestRecord.GENERATE,
        model=MODEL,
        owner="somebody",
        deadline=time.time() + deadline,
        payload={},
    )
    submit.submit(client, RequestStore(client, 60), record, model_queue(MODEL), attempt)
    return record.id


def waits(redis_server: RedisServer) -> bool:
    async def ask() -> bool:
        client = connect_async(redis_server.url)
        try:
            return await anybody_waits(client, MODEL)
        finally:
            await client.aclose()

    return asyncio.run(ask())


def waiting(client: redis.Redis) -> int:
    return queues.pending(client, [model_queue(MODEL)])


def follow(client: redis.Redis, request_id: str) -> redis.client.PubSub:
    pubsub = client.pubsub()
    pubsub.subscribe(keys.log_channel(request_id))
    assert pubsub.get_message(timeout=5) is not None
    return pubsub


def test_one_that_is_followed_behind_many_that_are_not(client: redis.Redis, redis_server: RedisServer) -> None:
    assert not waits(redis_server)
    for _ in range(120):
        send(client)
    assert not waits(redis_server)
    pubsub = follow(client, send(client))
    assert waits(redis_server)
    pubsub.close()
    # Nobody follows those, and somebody may come back: they stay.
    assert waiting(client) == 121


def test_what_has_ended_or_was_let_go_of_is_taken_out(client: redis.Redis, redis_server: RedisServer) -> None:
    ended, released = send(client), send(client)
    assert token_log.end(client, ended, 60, outcomes.cancelled(None))
    assert token_log.release_unopened(client, released, 60, Reason.CLIENT_GONE)
    followers = [follow(client, request_id) for request_id in (ended, released)]
    assert not waits(redis_server)
    assert waiting(client) == 0
    for pubsub in followers:
        pubsub.close()


def test_the_next_attempt_at_a_released_request_waits(client: redis.Redis, redis_server: RedisServer) -> None:
    request_id = send(client, attempt=2)
    assert token_log.release_unopened(client, request_id, 60, Reason.DRAIN)
    pubsub = follow(client, request_id)
    assert waits(redis_server)
    pubsub.close()
    assert waiting(client) == 1
