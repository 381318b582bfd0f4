"""Where processes show their metrics: each tells it, and Prometheus asks one front door for all."""

import logging
import threading
from typing import Any

import redis
from redis.exceptions import RedisError

from store.redis import keys as redis_keys

log = logging.getLogger(__name__)

#: How long a process counts that tells nothing more. Milliseconds.
_LEASE_MS = 30_000
#: How often it tells. Seconds.
_RENEW_SECONDS = 10.0

#: KEYS the set; ARGV member, lease in ms.
_ANNOUNCE = """
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ms)
redis.call('ZADD', KEYS[1], ms + ARGV[2], ARGV[1])
return 1
"""


class Announcement:
    """One process's side: ``kind`` (``worker``, ``grpc``), its name, ``host:port``."""

    def __init__(self, client: redis.Redis, kind: str, name: str, address: str) -> None:
        self._redis = client
        self._member = "\t".join((kind, name, address))
        self._announce: Any = client.register_script(_ANNOUNCE)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics-target", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread, and take the process off the list."""
        self._stop.set()
        self._thread.join(timeout=5)
        try:
            self._redis.zrem(redis_keys.metrics_targets(), self._member)
        except (RedisError, OSError) as error:
            log.warning("The metrics of this process stay listed for some seconds: %s", error)

    def _run(self) -> None:
        while True:
            try:
                self._announce(keys=[redis_keys.metrics_targets()], args=[self._member, _LEASE_MS])
            except (RedisError, OSError) as error:
                log.warning("The metrics of this process cannot be announced: %s", error)
            if self._stop.wait(_RENEW_SECONDS):
                return


def targets(client: redis.Redis) -> list[tuple[str, str, str]]:
    """Return kind, name and address of each process. Raises ``RedisError``."""
    seconds, micros = client.time()
    members: Any = client.zrangebyscore(redis_keys.metrics_targets(), seconds * 1000 + micros // 1000, "+inf")
    found = [member.decode().split("\t") for member in members]
    return sorted((kind, name, address) for kind, name, address in found)
