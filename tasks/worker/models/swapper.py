"""Loads models when they are asked for, on a worker that serves more of them than fit at once (``--swap``).

Requests for a model that is not loaded wait in its queue in Redis, where they outlive this worker and count as what
they are; the worker looks whether anybody waits, lets another model give way where it must, and loads.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

from store.redis.presence import Fleet, ModelStatus
from tasks.worker.inference.active_requests import ActiveRequests
from tasks.worker.models.hosted import HostedModel
from tasks.worker.models.hosted_models import HostedModels
from tasks.worker.models.room import Room
from tasks.worker.models.swap_policy import Plan

log = logging.getLogger(__name__)

#: How often it is looked whether anybody waits. Seconds.
LOOK_SECONDS = 0.25
#: How long a worker that is busy leaves what waits to one that is not. Seconds.
_DEFER_SECONDS = 1.0
#: After a load that failed, the next request tries again this much later. Seconds.
RETRY_SECONDS = 30.0


class Swapper:
    """The loop. Lives on the engines' loop."""

    def __init__(
        self,
        models: HostedModels,
        active_requests: ActiveRequests,
        room: Room,
        anybody_waits: Callable[[str], Awaitable[bool]],
        fleet: Callable[[], Awaitable[Fleet]],
        claim: Callable[[str], Awaitable[bool]],
        instance_id: str,
    ) -> None:
        """``anybody_waits`` tells whether somebody waits for a model, ``fleet`` who serves what; ``claim`` is true for
        one worker only among several that would load a model at once."""
        self._models = models
        self._active_requests = active_requests
        self._room = room
        self._anybody_waits = anybody_waits
        self._fleet = fleet
        self._claim = claim
        self._instance_id = instance_id
        #: Model -> since when somebody has been waiting for it (``time.monotonic``).
        self._waiting: dict[str, float] = {}
        self._lost_redis = False

    async def run(self) -> None:
        """Look and act until cancelled."""
        while True:
            try:
                await self._look()
                self._lost_redis = False
            except (RedisError, OSError) as error:
                if not self._lost_redis:
                    log.warning("Redis is away, nobody can be seen waiting: %s", error)
                self._lost_redis = True
            except Exception:
                # Without this loop no model would be loaded any more.
                log.exception("Swapping failed")
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        self._forgive()
        await self._see_who_waits()
        for model in sorted(self._waiting, key=lambda model: self._waiting[model]):
            hosted = self._hosted(model)
            if hosted is not None and not await self._bring(hosted):
                continue
            # Whatever was done took its time: look again at who waits.
            return
        await self._unload_idle()

    async def _bring(self, hosted: HostedModel) -> bool:
        """Load a model that is waited for. False where it is not its time yet."""
        spec = hosted.desired.spec
        plan = self._room.plan(hosted, self._models.all())
        if plan.refused:
            self._models.refuse(hosted, plan.refused)
            return False
        if plan.wait > 0 or not await self._is_ours(hosted, busy=self._gives_way_running(plan)):
            return False
        if plan.victims:
            log.info("Models give way", extra={"model": spec.id, "victims": ", ".join(plan.victims)})
            if not await self._models.give_way(plan.victims, lambda: self._still_waited_for(spec.id)):
                log.info("Nobody waits any more, the models stay", extra={"model": spec.id})
                return True
        if hosted.state not in (ModelStatus.UNLOADED, ModelStatus.ASLEEP):
            # An operator took it away meanwhile.
            return True
        await self._room.wait_for_memory(spec)
        await self._models.load(hosted)
        self._waiting.pop(spec.id, None)
        return True

    def _gives_way_running(self, plan: Plan) -> bool:
        return any(self._active_requests.of_model(model) for model in plan.victims)

    async def _is_ours(self, hosted: HostedModel, busy: bool) -> bool:
        """Whether this worker is the one to load a model: no other does, or has it."""
        model = hosted.desired.spec.id
        if hosted.wanted:
            return True
        if busy and time.monotonic() - self._waiting[model] < _DEFER_SECONDS:
            return False
        fleet = await self._fleet()
        others = [*fleet.serving(model), *fleet.loading(model)]
        if any(worker.instance_id != self._instance_id for worker in others):
            return False
        return await self._claim(model)

    async def _see_who_waits(self) -> None:
        for hosted in self._models.all():
            model = hosted.desired.spec.id
            at_rest = hosted.state in (ModelStatus.UNLOADED, ModelStatus.ASLEEP)
            if at_rest and (hosted.wanted or await self._anybody_waits(model)):
                self._waiting.setdefault(model, time.monotonic())
            else:
                self._waiting.pop(model, None)

    async def _still_waited_for(self, model: str) -> bool:
        hosted = self._hosted(model)
        if hosted is None:
            return False
        try:
            return hosted.wanted or await self._anybody_waits(model)
        except (RedisError, OSError):
            # Who cannot be asked for is not missed.
            return True

    def _forgive(self) -> None:
        for hosted in self._models.all():
            if hosted.state == ModelStatus.FAILED and time.time() - hosted.since >= RETRY_SECONDS:
                self._models.forgive(hosted)

    async def _unload_idle(self) -> None:
        idle, now = self._room.rules.idle, time.monotonic()
        for occupant in self._room.occupants(self._models.all()) if idle else []:
            unused = not (occupant.pinned or occupant.running or occupant.asleep)
            if unused and now - occupant.used_at >= idle:
                log.info("Nobody uses the model", extra={"model": occupant.model})
                await self._models.give_way([occupant.model], _always)

    def _hosted(self, model: str) -> HostedModel | None:
        return next((hosted for hosted in self._models.all() if hosted.desired.spec.id == model), None)


async def _always() -> bool:
    return True
