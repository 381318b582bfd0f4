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
from tasks.worker.models.giving_way import give_way
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
#: How often, while others give way, it is looked whether anybody still waits. Seconds.
_ASK_SECONDS = 0.5


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
        one worker only among several that would load a model at once, and is to be repeated."""
        self._models = models
        self._active_requests = active_requests
        self._room = room
        self._anybody_waits = anybody_waits
        self._fleet = fleet
        self._claim = claim
        self._instance_id = instance_id
        #: Model -> since when somebody has been waiting for it (``time.monotonic``).
        self._waiting: dict[str, float] = {}
        #: Models that are being brought, or fetched; of the first, the memory is theirs already.
        self._bringing: set[str] = set()
        self._fetching: set[str] = set()
        #: Models that give way to one that is being brought.
        self._leaving: set[str] = set()
        self._stopping = False
        self._lost_redis = False

    def stop(self) -> None:
        """The worker is told to stop: nothing gives way any more, and what waits is for others."""
        self._stopping = True

    async def run(self) -> None:
        """Look and act until cancelled, or stopped."""
        while not self._stopping:
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
        for failed in self._models.all():
            if failed.state == ModelStatus.FAILED and time.time() - failed.since >= RETRY_SECONDS:
                self._models.forgive(failed)
        await self._see_who_waits()
        first: HostedModel | None = None
        for model in sorted(self._waiting, key=lambda model: self._waiting[model]):
            hosted = self._hosted(model)
            if hosted is None or model in self._bringing or self._fetch(hosted):
                continue
            if first is not None and not self._room.fit_together(first, hosted):
                # Its turn comes after the one that has waited longer: it must not take the place that is kept for it.
                continue
            plan = self._room.plan(hosted, self._models.all())
            if plan.refused:
                self._models.refuse(hosted, plan.refused)
            elif plan.wait > 0 or (self._bringing and (plan.victims or not self._fits_later(hosted))):
                first = first or hosted
            elif await self._is_ours(hosted, plan):
                self._bringing.add(model)
                self._models.spawn(self._bring(hosted, plan))
        await self._unload_idle()

    async def _bring(self, hosted: HostedModel, plan: Plan) -> None:
        """Load a model that is waited for. What goes wrong is looked at again."""
        model, victims = hosted.spec.id, plan.victims
        self._leaving |= set(victims)
        try:
            if plan.victims:
                log.info("Models give way", extra={"model": model, "victims": ", ".join(plan.victims)})
                needed = self._still_needed(hosted)
                if not await give_way(self._models, self._active_requests, plan.victims, plan.sleepers, needed):
                    log.info("Nobody waits any more, the models stay", extra={"model": model})
                    return
                plan = self._room.plan(hosted, self._models.all(), self._bringing)
            self._leaving -= set(victims)
            if plan.victims or plan.wait or plan.refused:
                # Something took the place meanwhile.
                return
            if hosted.state not in (ModelStatus.UNLOADED, ModelStatus.ASLEEP) or self._stopping:
                # An operator took it away meanwhile.
                return
            hosted.become(ModelStatus.LOADING)
            self._models.changed.set()
            await self._room.wait_for_memory(hosted)
            await self._models.load(hosted)
        except Exception:
            log.exception("The model cannot be brought", extra={"model": model})
            if hosted.state == ModelStatus.LOADING:
                hosted.become(ModelStatus.UNLOADED)
        finally:
            self._bringing.discard(model)
            self._leaving -= set(victims)
            self._waiting.pop(model, None)

    def _fits_later(self, hosted: HostedModel) -> bool:
        """Whether a model fits beside those that will be there once the present change is through."""
        staying = [each for each in self._models.all() if each.spec.id not in self._leaving]
        plan = self._room.plan(hosted, staying, self._bringing)
        return not (plan.victims or plan.wait or plan.refused)

    def _fetch(self, hosted: HostedModel) -> bool:
        """Get the weights of a model first, while the others go on. False where they are here."""
        model = hosted.spec.id
        if hosted.fetched is not None or hosted.engine is not None:
            return False
        if model not in self._fetching:
            self._fetching.add(model)
            self._models.spawn(self._fetched(hosted))
        return True

    async def _fetched(self, hosted: HostedModel) -> None:
        try:
            await self._models.fetch(hosted)
        finally:
            self._fetching.discard(hosted.spec.id)

    async def _is_ours(self, hosted: HostedModel, plan: Plan) -> bool:
        """Whether this worker is the one to load a model: no other does, or has it."""
        model = hosted.spec.id
        if hosted.wanted:
            return True
        busy = any(self._active_requests.of_model(victim) for victim in plan.victims)
        if busy and time.monotonic() - self._waiting[model] < _DEFER_SECONDS:
            return False
        fleet = await self._fleet()
        others = [*fleet.serving(model), *fleet.loading(model)]
        if any(worker.instance_id != self._instance_id for worker in others):
            return False
        return await self._claim(model)

    async def _see_who_waits(self) -> None:
        waiting = {}
        for hosted in self._models.all():
            model = hosted.spec.id
            at_rest = hosted.state in (ModelStatus.UNLOADED, ModelStatus.ASLEEP)
            if at_rest and (hosted.wanted or await self._anybody_waits(model)):
                waiting[model] = self._waiting.get(model, time.monotonic())
            elif model in self._fetching and model in self._waiting:
                waiting[model] = self._waiting[model]
        self._waiting = waiting

    def _still_needed(self, hosted: HostedModel) -> Callable[[], Awaitable[bool]]:
        """Return what tells whether a model is still waited for; it repeats the claim."""
        asked_at, answer = 0.0, True

        async def needed() -> bool:
            nonlocal asked_at, answer
            if self._stopping or self._hosted(hosted.spec.id) is not hosted:
                return False
            if time.monotonic() - asked_at >= _ASK_SECONDS:
                asked_at = time.monotonic()
                try:
                    # Where another worker has it by now, because this one was held up, one is enough.
                    ours = await self._claim(hosted.spec.id)
                    answer = hosted.wanted or (ours and await self._anybody_waits(hosted.spec.id))
                except (RedisError, OSError):
                    # Who cannot be asked for is not missed.
                    answer = True
            return answer

        return needed

    async def _unload_idle(self) -> None:
        idle, now = self._room.rules.idle, time.monotonic()
        if not idle or self._bringing:
            return
        for occupant in self._room.occupants(self._models.all()):
            unused = not (occupant.pinned or occupant.running or occupant.asleep)
            if unused and now - occupant.used_at >= idle:
                log.info("Nobody uses the model", extra={"model": occupant.model})
                sleepers = [occupant.model] if occupant.asleep_share is not None else []
                await give_way(self._models, self._active_requests, [occupant.model], sleepers, _always)

    def _hosted(self, model: str) -> HostedModel | None:
        return next((hosted for hosted in self._models.all() if hosted.desired.spec.id == model), None)


async def _always() -> bool:
    return True
