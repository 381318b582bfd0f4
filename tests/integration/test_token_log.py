"""The token log on a real Redis: fencing, one end, catching up, and Redis going away."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from launcher.redis_server import RedisServer
from store.errors import Superseded
from store.redis import keys as redis_keys
from store.redis.client import connect
from store.token_log import log as token_log
from store.token_log import outcomes
from store.token_log.entries import (
    LAST_SEQUENCE,
    START,
    Entry,
    EntryId,
    Kind,
    Outcome,
    encode,
)
from store.token_log.follower import MAX_WAITING
from store.token_log.hub import Hub
from store.token_log.publisher import Publisher
from store.token_log.writer import LogWriter
from testing.publishing import publish
from testing.waiting import until

TTL = 60
FINISHED = outcomes.finished("stop", {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2})


async def write(writer: LogWriter, texts: list[str]) -> None:
    """Write words one by one, each in an entry of its own."""
    for number, word in enumerate(texts):
        writer.text(word, (number,))
        await asyncio.sleep(0.002)


async def written(writer: LogWriter) -> None:
    """Wait until Redis has all that was written; ``publish`` bounds it."""
    while not writer.settled:
        await asyncio.sleep(0.001)


def text_of(entries: list[Entry]) -> str:
    return "".join(entry.json()["text"] for entry in entries if entry.kind == Kind.TEXT)


def tokens_of(entries: list[Entry]) -> list[int]:
    return [int(token) for entry in entries if entry.tokens for token in entry.tokens.split(b",")]


def test_a_log_holds_opening_text_and_one_end(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    async def work(publisher: Publisher) -> None:
        writer = publisher.writer("r")
        await writer.open({"worker": "w"})
        await write(writer, ["a", "b", "c"])
        await writer.end(FINISHED)

    publish(redis_server.url, work)
    entries = token_log.read(redis_client, "r")
    assert entries[0].id == EntryId(1, 1)
    assert entries[0].kind == Kind.OPEN
    assert text_of(entries) == "abc"
    assert tokens_of(entries) == [0, 1, 2]
    assert entries[-1].id == EntryId(1, LAST_SEQUENCE)
    assert entries[-1].json() == FINISHED
    assert [entry.terminal for entry in entries].count(True) == 1
    ttl = redis_client.ttl(redis_keys.log("r"))
    assert 0 < ttl <= TTL
    assert token_log.read(redis_client, "r", after=entries[-2].id) == [entries[-1]]


def test_a_superseded_writer_is_refused_by_redis(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    async def work(publisher: Publisher) -> None:
        old, new = publisher.writer("r", attempt=1), publisher.writer("r", attempt=2)
        await old.open({"worker": "old"})
        await write(old, ["a", "b"])
        await new.open({"worker": "new"})
        new.start_at_index(2)
        old.text("LOST", (9,))
        with pytest.raises(Superseded):
            await old.end(FINISHED)
        with pytest.raises(Superseded):
            old.text("LOST", (9,))
        await write(new, ["c"])
        await new.end(FINISHED)
        with pytest.raises(Superseded):
            await publisher.writer("r", attempt=1).open({"worker": "older"})

    publish(redis_server.url, work)
    entries = token_log.read(redis_client, "r")
    assert text_of(entries) == "abc"
    assert [entry.json()["offset"] for entry in entries if entry.kind == Kind.TEXT] == [0, 1, 2]
    assert [entry.kind for entry in entries].count(Kind.END) == 1


def test_nothing_follows_an_end(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    async def work(publisher: Publisher) -> None:
        writer = publisher.writer("r")
        await writer.open({})
        assert token_log.end(redis_client, "r", TTL, {"outcome": Outcome.CANCELLED})
        writer.text("LOST", (1,))
        with pytest.raises(Superseded):
            await writer.end(FINISHED)
        with pytest.raises(Superseded):
            await publisher.writer("r", attempt=2).open({})

    publish(redis_server.url, work)
    assert not token_log.end(redis_client, "r", TTL, FINISHED)
    entries = token_log.read(redis_client, "r")
    assert [entry.kind for entry in entries] == [Kind.OPEN, Kind.END]
    assert entries[-1].json()["outcome"] == Outcome.CANCELLED


def test_a_request_that_never_began_can_be_ended(redis_client: redis.Redis) -> None:
    assert token_log.end(redis_client, "r", TTL, FINISHED)
    [entry] = token_log.read(redis_client, "r")
    assert entry.terminal


@pytest.fixture
def hub(redis_server: RedisServer, redis_client: redis.Redis):  # type: ignore[no-untyped-def]
    opened = Hub(redis_server.url, redis_client)
    yield opened
    opened.close()


def collect(hub: Hub, request_id: str, after: EntryId = START) -> list[Entry]:
    with hub.follow(request_id, after) as follower:
        return [entry for entry in follower.entries(idle=5) if entry is not None]


def test_followers_early_late_and_resuming_see_the_same(
    redis_server: RedisServer, redis_client: redis.Redis, hub: Hub
) -> None:
    early: list[list[Entry]] = []
    with hub.follow("r") as follower:
        thread = threading.Thread(
            target=lambda: early.append([entry for entry in follower.entries(idle=5) if entry is not None])
        )
        thread.start()

        async def work(publisher: Publisher) -> None:
            writer = publisher.writer("r")
            await writer.open({})
            await write(writer, [str(number) for number in range(50)])
            await writer.end(FINISHED)

        publish(redis_server.url, work)
        thread.join(20)
    whole = token_log.read(redis_client, "r")
    assert early == [whole]
    assert collect(hub, "r") == whole
    middle = whole[len(whole) // 2]
    assert collect(hub, "r", after=middle.id) == whole[len(whole) // 2 + 1 :]


def test_a_slow_follower_misses_nothing_and_keeps_a_bounded_queue(
    redis_server: RedisServer, redis_client: redis.Redis, hub: Hub
) -> None:
    texts = [f"w{number} " for number in range(MAX_WAITING * 2)]
    with hub.follow("r") as follower:

        async def work(publisher: Publisher) -> None:
            writer = publisher.writer("r")
            await writer.open({})
            await write(writer, texts)
            await writer.end(FINISHED)

        publish(redis_server.url, work)
        assert follower.waiting <= MAX_WAITING
        entries = [entry for entry in follower.entries(idle=5) if entry is not None]
    assert text_of(entries) == "".join(texts)
    assert entries == token_log.read(redis_client, "r")


def test_a_second_follower_sees_what_was_said_before_it_came(
    redis_server: RedisServer, redis_client: redis.Redis, hub: Hub
) -> None:
    with hub.follow("r"):
        assert token_log.end(redis_client, "r", TTL, FINISHED)
        with hub.follow("r") as second:
            entry = next(second.entries(idle=2))
            assert entry is not None
            assert entry.terminal


def test_silence_is_told(hub: Hub) -> None:
    with hub.follow("r") as follower:
        entries = follower.entries(idle=0.1)
        assert next(entries) is None
        assert next(entries) is None


def test_a_subscription_confirmed_after_the_first_look_is_looked_behind(redis_client: redis.Redis, hub: Hub) -> None:
    # Not entered: it hears nothing, as before its subscription counts.
    follower = hub.follow("r", may_have_history=False)
    entries = follower.entries(idle=0.4)
    assert next(entries) is None
    token_log.end(redis_client, "r", TTL, FINISHED)
    follower.on_subscribed()
    entry = next(entries)
    assert entry is not None
    assert entry.terminal


def test_many_followers_share_one_subscription(redis_server: RedisServer, redis_client: redis.Redis, hub: Hub) -> None:
    with hub.follow("a"), hub.follow("a"), hub.follow("b"):
        channel = redis_keys.log_channel("a")
        until(lambda: redis_client.pubsub_numsub(channel) == [(channel.encode(), 1)], 5, "one subscription")
        assert len(redis_client.client_list(_type="pubsub")) == 1

    def unsubscribed() -> bool:
        return all(count == 0 for _, count in redis_client.pubsub_numsub("cy:log:a", "cy:log:b"))

    until(unsubscribed, 5, "the channels are left")


def test_a_redis_that_restarts_loses_and_doubles_nothing(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    client = connect(server.url)
    hub = Hub(server.url, client)
    texts = [f"w{number} " for number in range(200)]
    seen: list[Entry] = []
    # The server dies with the thread that started it, so that one must outlive the loop.
    starter = ThreadPoolExecutor(1)
    try:
        with hub.follow("r") as follower:
            thread = threading.Thread(
                target=lambda: seen.extend(entry for entry in follower.entries(idle=5) if entry is not None)
            )
            thread.start()

            async def work(publisher: Publisher) -> None:
                writer = publisher.writer("r")
                await writer.open({})
                await write(writer, texts[:100])
                await asyncio.to_thread(server.stop)
                await write(writer, texts[100:150])
                await asyncio.get_running_loop().run_in_executor(starter, server.start)
                await write(writer, texts[150:])
                await writer.end(FINISHED)

            publish(server.url, work)
            thread.join(20)
        assert text_of(seen) == "".join(texts)
        assert tokens_of(token_log.read(client, "r")) == [*range(100), *range(50), *range(50)]
    finally:
        hub.close()
        client.close()
        server.stop()
        starter.shutdown()


def test_a_log_that_lost_its_last_entries_gets_them_again(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    """As after a crash of Redis that had not yet synced its file."""

    async def work(publisher: Publisher) -> None:
        writer = publisher.writer("r")
        await writer.open({})
        await write(writer, ["a", "b", "c", "d"])
        await written(writer)
        rows = redis_client.xrange(redis_keys.log("r"))
        redis_client.delete(redis_keys.log("r"))
        for entry_id, fields in rows[:3]:
            redis_client.xadd(redis_keys.log("r"), fields, id=entry_id)
        writer.mark_uncertain()
        await write(writer, ["e"])
        await writer.end(FINISHED)

    publish(redis_server.url, work)
    assert text_of(token_log.read(redis_client, "r")) == "abcde"


def test_a_log_that_was_lost_whole_is_written_again(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    async def work(publisher: Publisher) -> None:
        writer = publisher.writer("r")
        await writer.open({"worker": "w"})
        await write(writer, ["a", "b"])
        await written(writer)
        redis_client.flushdb()
        writer.mark_uncertain()
        await write(writer, ["c"])
        await writer.end(FINISHED)

    publish(redis_server.url, work)
    entries = token_log.read(redis_client, "r")
    assert entries[0].kind == Kind.OPEN
    assert text_of(entries) == "abc"


def test_a_repeated_write_is_no_refusal(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    """Redis took a batch, and its answer was lost: the writer sends it again."""

    async def work(publisher: Publisher) -> None:
        writer = publisher.writer("r")
        await writer.open({"worker": "w"})
        await write(writer, ["a", "b"])
        await written(writer)
        writer.written(1, writer.followers)
        await write(writer, ["c"])
        await writer.end(FINISHED)
        for _ in range(2):
            await publisher.writer("other").open({"worker": "w"})

    publish(redis_server.url, work)
    assert text_of(token_log.read(redis_client, "r")) == "abc"


def test_a_tail_that_was_lost_unnoticed_is_written_again(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    """The connection came back at once, so the writer was not told that Redis had been away."""

    async def work(publisher: Publisher) -> None:
        writer = publisher.writer("r")
        await writer.open({"worker": "w"})
        await write(writer, ["a", "b", "c", "d"])
        await written(writer)
        last = redis_client.xrevrange(redis_keys.log("r"), count=1)[0][0]
        rows = redis_client.xrange(redis_keys.log("r"), max=f"({last.decode()}")
        redis_client.delete(redis_keys.log("r"))
        for entry_id, fields in rows:
            redis_client.xadd(redis_keys.log("r"), fields, id=entry_id)
        await write(writer, ["e"])
        await writer.end(FINISHED)

    publish(redis_server.url, work)
    assert text_of(token_log.read(redis_client, "r")) == "abcde"


def test_a_request_that_could_not_be_opened_can_be_ended(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    async def work(publisher: Publisher) -> None:
        await publisher.writer("r").end(FINISHED)

    publish(redis_server.url, work)
    [entry] = token_log.read(redis_client, "r")
    assert entry.json() == FINISHED


def test_a_full_redis_makes_writers_wait_and_fences_nobody(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    try:
        with connect(server.url) as client:

            async def work(publisher: Publisher) -> None:
                writer = publisher.writer("r")
                await writer.open({"worker": "w"})
                client.config_set("maxmemory", "1")
                await write(writer, ["a", "b"])
                while not writer.uncertain:
                    await asyncio.sleep(0.001)
                client.config_set("maxmemory", "0")
                await write(writer, ["c"])
                await writer.end(FINISHED)

            publish(server.url, work)
            assert text_of(token_log.read(client, "r")) == "abc"
    finally:
        server.stop()


def test_redis_forgets_scripts_and_writers_do_not_mind(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    async def work(publisher: Publisher) -> None:
        for request_id in ("r1", "r2"):
            writer = publisher.writer(request_id)
            await writer.open({})
            await write(writer, ["a"])
            redis_client.script_flush()
            await write(writer, ["b"])
            await writer.end(FINISHED)
            redis_client.script_flush()

    publish(redis_server.url, work)
    assert text_of(token_log.read(redis_client, "r1")) == text_of(token_log.read(redis_client, "r2")) == "ab"


def test_bytes_of_a_body_are_kept_and_merged_under_load(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    parts = [f"data: {number}\n\n".encode() for number in range(100)]

    async def work(publisher: Publisher) -> None:
        writer = publisher.writer("r")
        await writer.open({})
        writer.head({"status": 200, "content_type": "text/event-stream"})
        for part in parts:
            writer.body(part)
        await writer.end(FINISHED)

    publish(redis_server.url, work)
    entries = token_log.read(redis_client, "r")
    bodies = [entry.data for entry in entries if entry.kind == Kind.BODY]
    assert b"".join(bodies) == b"".join(parts)
    assert len(bodies) < len(parts) / 2
    assert [entry.kind for entry in entries][:2] == [Kind.OPEN, Kind.HEAD]


def test_encoding_is_compact_and_keeps_characters() -> None:
    assert encode({"t": "你好"}) == '{"t":"你好"}'.encode()


def test_a_follower_sees_at_once_what_was_said_before_it_came(redis_client: redis.Redis, hub: Hub) -> None:
    for number in range(200):
        assert token_log.end(redis_client, f"r{number}", TTL, FINISHED)
        with hub.follow(f"r{number}") as follower:
            entry = next(follower.entries(idle=2))
            assert entry is not None
            assert entry.terminal
