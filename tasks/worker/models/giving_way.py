"""How models make room for another: they take nothing new, what runs on them ends, and what waits goes on waiting."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection

from store.redis.presence import ModelStatus
from tasks.worker.inference.active_requests import ActiveRequests, StopReason
from tasks.worker.models.hosted import HostedModel
from tasks.worker.models.hosted_models import LOOK_SECONDS, HostedModels

log = logging.getLogger(__name__)

#: How long a model whose queue was left takes what is just on its way out of it. Seconds; later is handed on.
_LEFT_SECONDS = 0.3


async def give_way(
    models: HostedModels,
    active_requests: ActiveRequests,
    victims: Collection[str],
    sleepers: Collection[str],
    needed: Callable[[], Awaitable[bool]],
) -> bool:
    """Free the memory of ``victims``; those of them that are ``sleepers`` may fall asleep.

    False, and all is as before, where that is not ``needed`` any more, or a queue cannot be left.
    """
    leaving = [hosted for hosted in models.all() if hosted.desired.spec.id in victims]
    awake = [hosted for hosted in leaving if hosted.state == ModelStatus.READY]
    for hosted in awake:
        hosted.become(ModelStatus.DRAINING)
    models.changed.set()
    left = [await models.queues.ignore(hosted.desired.spec.id) for hosted in awake]
    settled = time.monotonic() + _LEFT_SECONDS

    def busy() -> bool:
        # One that an operator takes away frees itself.
        drained = (hosted for hosted in leaving if hosted not in awake and hosted.state == ModelStatus.DRAINING)
        return any(models.runs(hosted) for hosted in awake) or any(hosted.engine is not None for hosted in drained)

    while not all(left) or time.monotonic() < settled or busy():
        if not all(left) or not await needed():
            for hosted in awake:
                await models.take_back(hosted)
            return False
        for hosted in awake:
            if hosted.forced:
                active_requests.stop_all(StopReason.UNLOADED, hosted.desired.spec.id)
        await asyncio.sleep(LOOK_SECONDS)
    for hosted in awake:
        # All at once: what still comes for one while another is freed is handed on.
        hosted.loaded = False
    for hosted in leaving:
        if hosted in awake:
            await models.loader.rest(hosted, hosted.desired.spec.id in sleepers)
        elif hosted.engine is not None and hosted.state != ModelStatus.DRAINING:
            await _free(models, hosted)
        hosted.forced = False
    models.refresh()
    return True


async def _free(models: HostedModels, hosted: HostedModel) -> None:
    if hosted.state == ModelStatus.ASLEEP:
        hosted.become(ModelStatus.UNLOADED)
    await models.loader.stop(hosted)
