"""The counts of tokens in Redis, one for each key and tenant that has a limit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

from store.redis import keys as redis_keys
from store.redis.request_records import RequestRecord
from store.token_budget.scripts import CORRECT, RESERVE, SETTLE
from store.token_budget.settlement import Settlement, settlement

MINUTE, QUOTA = "minute", "quota"


@dataclass(frozen=True)
class TokenLimit:
    """What one holder, a key or a tenant, may use; 0 is no limit."""

    holder: str
    per_minute: int
    quota: int
    #: From when on requests count in the quota. Unix time, milliseconds.
    begins: int
    #: When the quota's period ends. Unix time, seconds.
    ends: int


@dataclass(frozen=True)
class Count:
    """What a holder has used of its minute and of its quota, and what is set aside for requests that run."""

    minute: int = 0
    used: int = 0
    reserved: int = 0


@dataclass(frozen=True)
class Refusal:
    """Which limit has no room for a request: ``MINUTE`` or ``QUOTA`` of one of the holders asked for."""

    limit: TokenLimit
    kind: str
    count: Count


@dataclass(frozen=True)
class Unknown:
    """What a holder has used of its quota has to be read from the books first."""

    limit: TokenLimit


class TokenBudget:
    """Sets tokens aside and gives them back. All methods raise ``RedisError``."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._reserve: Any = client.register_script(RESERVE)
        self._correct: Any = client.register_script(CORRECT)
        self._settle: Any = client.register_script(SETTLE)

    def reserve(
        self, limits: Sequence[TokenLimit], request_id: str, tokens: int, lease_seconds: float
    ) -> list[Count] | Refusal | Unknown:
        """Set tokens aside for all limits or none; return what each had counted before."""
        keys = [name for each in limits for name in _names(each.holder)]
        bounds = [value for each in limits for value in (each.per_minute, each.quota, each.begins, each.ends)]
        found = self._reserve(keys=keys, args=[request_id, tokens, int(lease_seconds * 1000), *bounds])
        if found[0] == 1:
            return [Count(*found[at : at + 3]) for at in range(1, len(found), 3)]
        limit = limits[found[1] - 1]
        return Unknown(limit) if found[0] == 2 else Refusal(limit, found[2].decode(), Count(*found[3:]))

    def give_back(self, record: RequestRecord) -> None:
        """Give back what was set aside for a request that did not begin."""
        self.settle(settlement(record, None, final=True))

    def settle(self, settled: Settlement) -> None:
        """Count what a request has used in place of what was set aside for it."""
        self._settle(keys=settled.keys, args=[settled.text])

    def count(self, limit: TokenLimit) -> Count | None:
        """Return a holder's count, as of its last request; None where its period is not known."""
        minute, at, rate, reserved, period, used = self._redis.hmget(
            redis_keys.tokens(limit.holder), "minute", "at", "rate", "reserved", "period", "used"
        )
        if limit.quota and (period is None or int(period) != limit.begins):
            return None
        left = 0.0
        if minute is not None and at is not None and rate is not None:
            seconds, millionths = self._redis.time()
            left = max(0.0, float(minute) - float(rate) * (seconds + millionths / 1e6 - float(at) / 1000) / 60)
        return Count(round(left), int(used or 0), int(reserved or 0))

    def used_before(self, limit: TokenLimit) -> bytes | None:
        """Return what :meth:`correct` shall find unchanged, to be read before the books are."""
        found: Any = self._redis.hmget(redis_keys.tokens(limit.holder), "period", "used")
        period, used = found
        return used if period is not None and int(period) == limit.begins else None

    def checked_ago(self, limit: TokenLimit) -> float:
        """Return how long ago the count was set to what the books say. Seconds."""
        checked = self._redis.hget(redis_keys.tokens(limit.holder), "checked")
        seconds, millionths = self._redis.time()
        return seconds + millionths / 1e6 - float(checked or 0) / 1000

    def correct(self, limit: TokenLimit, before: bytes | None, booked: int) -> bool:
        """Set the used part of a quota to what the books say; False where something was counted meanwhile."""
        names = [redis_keys.tokens(limit.holder), redis_keys.bills()]
        return bool(self._correct(keys=names, args=[limit.begins, b"" if before is None else before, booked]))


def _names(holder: str) -> tuple[str, str]:
    return redis_keys.tokens(holder), redis_keys.token_reserves(holder)
