"""The front door's own task messages beside those that Celery writes."""

import base64
import json
import time
from typing import Any

import redis

from launcher.redis_server import RedisServer
from tasks.broker.messages import task_message
from tasks.broker.names import TASK_GENERATE
from tasks.celery import app


def opened(message: Any) -> dict[str, Any]:
    """A message without what differs from one to the next."""
    found: dict[str, Any] = json.loads(message)
    found["body"] = json.loads(base64.b64decode(found["body"]))
    for name in ("delivery_tag", "reply_to"):
        assert isinstance(found["properties"].pop(name), str)
    found["properties"].pop("expiration", None)
    assert isinstance(found["headers"].pop("origin"), str)
    assert found["headers"].pop("expires").endswith("+00:00")
    return found


def test_a_message_is_what_celery_sends(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    for attempt, priority in ((1, 0), (3, 9), (1, 4)):
        redis_client.flushdb()
        with app.connection_for_write(redis_server.url.replace("unix://", "redis+socket://", 1)) as connection:
            app.send_task(
                TASK_GENERATE,
                args=["gen-1", "demo"],
                kwargs={"attempt": attempt},
                task_id="gen-1" if attempt == 1 else f"gen-1.{attempt}",
                queue="gpu-infer.demo",
                priority=9 - priority,
                expires=600.0,
                connection=connection,
            )
        [key] = list(redis_client.keys("gpu-infer*"))
        [sent] = redis_client.lrange(key, 0, -1)
        task_id = "gen-1" if attempt == 1 else f"gen-1.{attempt}"
        expires = time.time() + 600
        name, message = task_message(
            TASK_GENERATE, task_id, ["gen-1", "demo"], {"attempt": attempt}, "gpu-infer.demo", priority, expires
        )
        assert name.encode() == key
        assert opened(message) == opened(sent)
