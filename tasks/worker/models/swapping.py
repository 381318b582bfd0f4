"""What swapping on a worker stands on: the settings, Redis and the other workers."""

import asyncio

import redis.asyncio

from engines.memory import DeviceMemory
from settings import Settings
from store.redis import keys
from store.redis.client import connect
from store.redis.presence import Fleet, PresenceReader
from tasks.broker.waiting import anybody_waits
from tasks.worker.inference.active_requests import ActiveRequests
from tasks.worker.models.hosted_models import HostedModels
from tasks.worker.models.room import Room, SwapRules
from tasks.worker.models.swapper import Swapper

#: How long a worker's word holds that it loads a model; by then its presence says so. Seconds.
_CLAIM_SECONDS = 5


def make_room_of(settings: Settings, visible_devices: str | None, active_requests: ActiveRequests) -> Room:
    """Return the memory of a ``--swap`` worker."""
    rules = SwapRules(settings.swap_min_stay, settings.swap_max_loaded, settings.swap_idle)
    return Room(DeviceMemory(visible_devices), rules, active_requests)


async def claim_model(client: redis.asyncio.Redis, instance_id: str, model: str) -> bool:
    """Whether this worker is the one that loads a model; for as long as it repeats that, no other is."""
    name = keys.swap_claim(model)
    if await client.set(name, instance_id, nx=True, ex=_CLAIM_SECONDS):
        return True
    if await client.get(name) != instance_id.encode():
        return False
    # It may run out between the two: then it is anybody's, and the next repetition tells whose.
    return bool(await client.expire(name, _CLAIM_SECONDS))


def make_swapper(
    settings: Settings,
    instance_id: str,
    models: HostedModels,
    active_requests: ActiveRequests,
    room: Room,
    client: redis.asyncio.Redis,
) -> Swapper:
    """Return the swapper of a worker; ``client`` is of the engines' loop."""
    presence = PresenceReader(connect(settings.redis_url))

    async def waits(model: str) -> bool:
        return await anybody_waits(client, model)

    async def fleet() -> Fleet:
        return await asyncio.to_thread(presence.fleet, True)

    async def claim(model: str) -> bool:
        return await claim_model(client, instance_id, model)

    return Swapper(models, active_requests, room, waits, fleet, claim, instance_id)
