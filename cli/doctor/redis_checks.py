"""Redis: whether it answers, is new enough, keeps what it is given, and has our time; and the workers in it."""

import time
from collections.abc import Iterator
from typing import Any

import redis
from redis.exceptions import RedisError

from cli.doctor.finding import Finding, failure, ok, warning
from store.redis import keys as redis_keys
from store.redis.presence import PresenceReader
from store.token_log.log import MAX_BILLS

_PART = "redis"
#: The oldest that was tried.
_OLDEST = (6, 2)
#: How slow a round trip may be before streams show it. Milliseconds.
_SLOW_MS = 5.0
#: How far clocks may be apart: deadlines are told by the front door's, leases by Redis'. Seconds.
_CLOCK_SECONDS = 2.0
#: More requests than that are not booked within a second: nobody books, or the database is away.
_UNBOOKED = 1000
#: How full its memory may be.
_FULL = 0.8


def _round_trip(client: redis.Redis) -> float:
    """Return how long a ping takes. Seconds."""
    began = time.perf_counter()
    client.ping()
    return time.perf_counter() - began


def look_at_redis(client: redis.Redis, address: str) -> Iterator[Finding]:
    """Yield what there is to say of Redis, and of the workers that show themselves there."""
    try:
        # The first one connects.
        latency = min(_round_trip(client) for _ in range(4)) * 1000
        info: dict[str, Any] = client.info()
    except (RedisError, OSError) as error:
        remedy = "Start Redis, or set REDIS_URL; bin/serve without REDIS_URL brings one of its own, for itself alone"
        yield failure(_PART, f"{address} does not answer: {error}", remedy)
        return
    name = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    version = str(info.get("valkey_version") or info["redis_version"])
    if tuple(int(word) for word in version.split(".")[:2]) < _OLDEST:
        yield failure(_PART, f"{name} {version} at {address}", "6.2 or newer is needed")
    else:
        yield ok(_PART, f"{name} {version} at {address}")
    if latency > _SLOW_MS:
        yield warning(_PART, f"a round trip takes {latency:.1f} ms", "Each token passes it: put Redis nearer")
    yield from _settings(info)
    yield from _clock(client)
    yield from _workers(client)
    yield from _usage(client)


def _settings(info: dict[str, Any]) -> Iterator[Finding]:
    if info.get("role") not in (None, "master"):
        yield failure(_PART, "it is a replica, which takes no writes", "Name the master, or Sentinel, in REDIS_URL")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        what = f"maxmemory-policy is {policy}: when memory is full, requests that run lose their text"
        yield warning(_PART, what, "CONFIG SET maxmemory-policy noeviction")
    most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if most and used > _FULL * most:
        what = f"{used >> 20} of {most >> 20} MiB are used"
        yield warning(_PART, what, "Raise maxmemory, or lower CY_LLM_STREAM_TTL_SECONDS")
    if not int(info.get("aof_enabled", 0)):
        what = "the append-only file is off: a restart of Redis loses what is queued and what runs"
        yield warning(_PART, what, "CONFIG SET appendonly yes (appendfsync everysec)")
    for field, what in (("aof_last_write_status", "the append-only file"), ("rdb_last_bgsave_status", "the snapshot")):
        if info.get(field, "ok") != "ok":
            yield failure(_PART, f"{what} could not be written", "Look at the disk and the log of Redis")


def _clock(client: redis.Redis) -> Iterator[Finding]:
    before = time.time()
    seconds, microseconds = client.time()
    away = seconds + microseconds / 1e6 - (before + time.time()) / 2
    if abs(away) > _CLOCK_SECONDS:
        what = f"the clock of Redis is {abs(away):.0f} s {'ahead of' if away > 0 else 'behind'} this machine's"
        yield warning("clock", what, "Let both follow a time server: a request's deadline is a time of day")
    else:
        yield ok("clock", "that of Redis is this machine's")


def _workers(client: redis.Redis) -> Iterator[Finding]:
    fleet = PresenceReader(client).fleet(fresh=True)
    if fleet.lost:
        names = ", ".join(sorted(instance_id.rpartition(":")[0] for instance_id in fleet.lost))
        yield warning("workers", f"lost within ten minutes: {names}", "Look at their logs; a supervisor restarts them")
    if not fleet.living:
        yield warning("workers", "none shows itself", "bin/serve starts one, or: celery -A tasks worker -Q gpu-infer")
    for worker in fleet.living:
        models = ", ".join(sorted(worker.models)) or "no model"
        if worker.ready:
            yield ok("workers", f"{worker.name}: {models}, {worker.in_flight} running")
        else:
            yield warning("workers", f"{worker.name} is {worker.state}: {models}", "bin/cy-llm models status NAME")


def _usage(client: redis.Redis) -> Iterator[Finding]:
    waiting = int(client.xlen(redis_keys.bills()))
    if waiting > _UNBOOKED:
        what = f"{waiting} requests wait to be booked, and the oldest go when there are {MAX_BILLS}"
        yield warning("usage", what, "Run a worker for it: celery -A tasks worker -Q cpu-work -P threads")
    else:
        yield ok("usage", f"{waiting} requests wait to be booked")
