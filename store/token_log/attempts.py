"""Who may make the next attempt at a request: one claim wins, and none is made for ever."""

from dataclasses import dataclass
from typing import Any

import redis

from store.redis import keys as redis_keys

#: A request that this many workers died of is given up.
MAX_KILLS = 2

#: KEYS attempts; ARGV ttl, the attempt that the caller knows, 1 when a worker died of it.
#: Returns the attempt in charge, the kills, and 1 when the caller has won the next attempt.
_CLAIM = """
local n = tonumber(redis.call('HGET', KEYS[1], 'n') or ARGV[2])
local kills = tonumber(redis.call('HGET', KEYS[1], 'kills') or 0)
if n > tonumber(ARGV[2]) then return {n, kills, 0} end
kills = kills + tonumber(ARGV[3])
redis.call('HSET', KEYS[1], 'n', n + 1, 'kills', kills)
redis.call('EXPIRE', KEYS[1], ARGV[1])
return {n + 1, kills, 1}
"""


@dataclass(frozen=True)
class Claim:
    """The answer to a claim."""

    attempt: int
    kills: int
    won: bool

    @property
    def poisonous(self) -> bool:
        return self.kills >= MAX_KILLS


class Attempts:
    """Counts the attempts of all requests."""

    def __init__(self, client: redis.Redis) -> None:
        self._claim = client.register_script(_CLAIM)

    def claim(self, request_id: str, known: int, killed: bool, ttl: int) -> Claim:
        """Claim the attempt after ``known``. Only the first of all callers wins it."""
        answer: Any = self._claim(keys=[redis_keys.attempts(request_id)], args=[ttl, known, int(killed)])
        attempt, kills, won = (int(number) for number in answer)
        return Claim(attempt, kills, bool(won))
