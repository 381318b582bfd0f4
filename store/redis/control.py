"""What the front door tells the workers while a request runs: to stop it.

Pub/sub, because it is only a short cut: a worker that misses a message is refused by the
token log at its next write.
"""

import asyncio
import json
import logging
from collections.abc import Callable

import redis
from redis.exceptions import RedisError

from store.redis import keys as redis_keys
from store.redis.client import connect_async

log = logging.getLogger(__name__)

#: Pause before the subscription is made anew after Redis went away. Seconds.
_RECONNECT_SECONDS = 0.2


class Command:
    """What workers can be asked for."""

    #: End it: the client wants no more.
    CANCEL = "cancel"
    #: Let go of it: the client left, and may come back.
    RELEASE = "release"
    #: A model has a new adapter: load it before anybody asks for it.
    LOAD_ADAPTER = "load_adapter"
    #: Let go of a model: finish what runs on it, then free its memory.
    UNLOAD_MODEL = "unload_model"
    #: End what runs on a model: an operator takes it away by force.
    STOP_MODEL = "stop_model"


def send(client: redis.Redis, command: str, target_id: str, **arguments: str) -> None:
    """Tell all workers; those that run the request (or serve the model) called ``target_id`` act."""
    client.publish(redis_keys.control_channel(), json.dumps({"command": command, "id": target_id, **arguments}))


async def listen(url: str, handle: Callable[[dict[str, str]], None]) -> None:
    """Call ``handle`` with ``command``, ``id`` and its arguments, for every command, until cancelled."""
    lost = False
    while True:
        client = connect_async(url, timeout=None)
        try:
            async with client.pubsub() as pubsub:
                await pubsub.subscribe(redis_keys.control_channel())
                lost = False
                while True:
                    message = await pubsub.get_message(timeout=None)
                    if message is not None and message["type"] == "message":
                        _dispatch(message["data"], handle)
        except (RedisError, OSError) as error:
            if not lost:
                log.warning("The control subscription was lost, making it anew: %s", error)
            lost = True
        finally:
            await client.aclose()
        await asyncio.sleep(_RECONNECT_SECONDS)


def _dispatch(data: bytes, handle: Callable[[dict[str, str]], None]) -> None:
    try:
        message = json.loads(data)
        known = message["command"] and message["id"]
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        log.warning("Not a command: %r", data[:100])
        return
    handle(message)
