"""Where Prometheus finds the processes that are no front doors."""

from typing import Any, Protocol

import redis

from store.redis.metrics_targets import Announcement, targets


class Announced(Protocol):
    """What ends an announcement."""

    def close(self) -> None: ...


def announce(client: redis.Redis, kind: str, name: str, address: str) -> Announced:
    """Tell where a process shows its metrics, again and again until the result is closed."""
    announcement = Announcement(client, kind, name, address)
    announcement.start()
    return announcement


def http_sd(client: redis.Redis) -> list[dict[str, Any]]:
    """Return them as Prometheus' ``http_sd_configs`` reads them. Raises ``RedisError``."""
    return [
        {"targets": [address], "labels": {"component": kind, "worker": name}} for kind, name, address in targets(client)
    ]
