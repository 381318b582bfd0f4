"""The one door to kombu's wire format: a task's message, and the Redis list that it lies in.

The sending side puts messages into the queues itself, in one round trip with what else it writes:
Celery's own way costs a request half a millisecond more, and would load Celery into the front
door. Relied on: Celery's message protocol 2 (documented), the envelope and the list names of
kombu 5.7's Redis transport (not documented). ``tests/integration/test_messages.py`` compares every
field with what the installed Celery and kombu send, and says which differs.
"""

import base64
import json
import uuid
from datetime import UTC, datetime
from typing import Any

from store.redis import keys
from tasks.broker.names import HIGHEST_PRIORITY

#: What a task's signature may carry besides its arguments; none of it is used.
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_REPLY_TO = str(uuid.uuid4())
#: Between a queue's name and a priority in the name of a Redis list (``kombu.transport.redis``).
_SEPARATOR = "\x06\x16"


def list_of(queue: str, step: int) -> str:
    """The Redis list of a queue's messages of one priority, as the broker counts them (0 is served first)."""
    name = f"{keys.prefix()}{queue}"
    return f"{name}{_SEPARATOR}{step}" if step else name


def task_message(
    task: str,
    task_id: str,
    arguments: list[str],
    named: dict[str, Any],
    queue: str,
    priority: int = HIGHEST_PRIORITY,
    expires: float | None = None,
) -> tuple[str, str]:
    """Return the Redis list of ``queue`` for a priority (0 to 9, 9 is served first), and the message for it.

    ``expires`` is in seconds from the epoch; a worker drops what it gets later. None is never.
    """
    # The broker serves the lowest number first.
    step = HIGHEST_PRIORITY - priority
    headers: dict[str, Any] = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None if expires is None else datetime.fromtimestamp(expires, UTC).isoformat(),
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": repr(arguments),
        "kwargsrepr": repr(named),
        "origin": "front-door",
        "ignore_result": None,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    properties = {
        "correlation_id": task_id,
        "reply_to": _REPLY_TO,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": step,
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),
    }
    message = {
        "body": base64.b64encode(json.dumps([arguments, named, _EMBED]).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }
    return list_of(queue, step), json.dumps(message)
