"""Requests that nobody follows, looked after behind each look at them: on a real Redis, with made-up workers."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from services.inference import failover, unattended
from services.inference.failover import Failover
from store.redis import keys
from store.redis.presence import Fleet, State, WorkerInfo
from store.redis.request_records import RequestRecord, RequestStore
from testing.waiting import until


class Workers:
    """Stands in for presence and queue depth."""

    def __init__(self) -> None:
        self.names = ["w-1"]
        self.looks = 0

    def fleet(self, fresh: bool = False) -> Fleet:
        self.looks += 1
        living = [WorkerInfo(name, name, State.READY, ["gpu-infer"], models={"m": {}}) for name in self.names]
        return Fleet(tuple(living), redis_uptime=1000.0)

    def refresh(self) -> None:
        """Of the queue depth."""


@pytest.fixture
def workers() -> Workers:
    return Workers()


@pytest.fixture
def watching(redis_client: redis.Redis, workers: Workers, monkeypatch: Any) -> Iterator[Failover]:
    for name in ("TICK_SECONDS", "_SCAN_SECONDS", "_MISSING_SECONDS", "_MISSING_SECONDS_AFTER_LOSS"):
        monkeypatch.setattr(failover, name, 0.05)
    presence: Any = workers
    found = Failover(redis_client, RequestStore(redis_client, 60), presence, presence, 60)
    yield found
    found.close()


#: Of a deadline that is over: a request may outlive it by a last attempt.
RECORD = RequestRecord(id="gen-1", kind="openai", model="m", owner="o", deadline=time.time() - 600, payload={})


def write(client: redis.Redis, entry_id: str, kind: str, **data: Any) -> None:
    client.xadd(keys.log(RECORD.id), {"k": kind, "d": json.dumps(data), "n": ""}, id=entry_id)


def attempt(client: redis.Redis) -> int:
    return int(client.hget(keys.attempts(RECORD.id), "n") or 1)  # type: ignore[arg-type]


def let_it_look(workers: Workers) -> None:
    """Wait until failover has looked many times as long as a request may be missing."""
    enough = workers.looks + 20
    until(lambda: workers.looks >= enough, 20, "failover has looked")


def test_one_that_runs_is_left_alone_and_goes_on_when_its_worker_dies(
    watching: Failover, redis_client: redis.Redis, workers: Workers
) -> None:
    watching.unattended.look_after(RECORD, "gpu-infer", workers.fleet())
    write(redis_client, "1-1", "o", worker="w-1")
    let_it_look(workers)
    assert attempt(redis_client) == 1
    workers.names = ["w-2"]
    until(lambda: attempt(redis_client) == 2, 5, "another one is sent")


def test_one_that_has_ended_is_left_alone(watching: Failover, redis_client: redis.Redis, workers: Workers) -> None:
    write(redis_client, "1-1", "o", worker="w-1")
    watching.unattended.look_after(RECORD)
    let_it_look(workers)
    write(redis_client, "1-2", "e", outcome="finished")
    with watching.watch(RECORD) as watched:
        until(lambda: watched.ended, 5, "its end is seen")
    workers.names = ["w-2"]
    let_it_look(workers)
    assert attempt(redis_client) == 1


@pytest.mark.parametrize(("again", "expected"), [(False, 1), (True, 2)])
def test_each_look_gives_it_more_time(
    watching: Failover, redis_client: redis.Redis, workers: Workers, monkeypatch: Any, again: bool, expected: int
) -> None:
    write(redis_client, "1-1", "o", worker="w-1")
    monkeypatch.setattr(unattended, "LOOK_AFTER_SECONDS", 0.5)
    watching.unattended.look_after(RECORD)
    if again:
        monkeypatch.setattr(unattended, "LOOK_AFTER_SECONDS", 60.0)
        watching.unattended.look_after(RECORD)
    let_it_look(workers)
    workers.names = ["w-2"]
    let_it_look(workers)
    assert attempt(redis_client) == expected
