"""How much of the memory each model of a ``--swap`` worker takes, and what it takes to make room for another one."""

import asyncio
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass

from engines.memory import SLACK, DeviceMemory
from engines.model_spec import ModelSpec
from engines.shares import least_memory, memory_share
from engines.sizing import describe, mebibytes
from store.redis.presence import ModelStatus
from tasks.worker.inference.active_requests import ActiveRequests
from tasks.worker.models.hosted import HostedModel
from tasks.worker.models.swap_policy import Occupant, Plan, make_room

log = logging.getLogger(__name__)

#: How long the memory of an engine that has ended may take to come back. Seconds.
_RETURN_SECONDS = 20.0
_LOOK_SECONDS = 0.25
#: What the context of a sleeping engine goes on holding on its card. Bytes; measured values lie between 1 and 2 GB.
_ASLEEP_BYTES = 2 * 10**9


@dataclass(frozen=True)
class SwapRules:
    """When models give way. Times in seconds."""

    #: A model stays at least this long.
    min_stay: float = 10.0
    #: Models loaded at once; 0 is as many as fit.
    max_loaded: int = 0
    #: A model that nobody has used for this long is unloaded; 0 is never.
    idle: float = 0.0


class Room:
    """The memory of one worker."""

    def __init__(self, memory: DeviceMemory, rules: SwapRules, active_requests: ActiveRequests) -> None:
        self.rules = rules
        self._memory = memory
        self._total = memory.read().total
        self._active_requests = active_requests

    def at_start(self, specs: list[ModelSpec]) -> list[str]:
        """Return the ids of the models to load at the start: pinned ones, then in their order as many as fit."""
        chosen: list[Occupant] = []
        for spec in sorted(specs, key=lambda spec: not spec.pinned):
            occupant = Occupant(spec.id, self._share(spec), pinned=True)
            if not chosen or not make_room(occupant.share, chosen, 0, 0, self.rules.max_loaded).refused:
                chosen.append(occupant)
        return [occupant.model for occupant in chosen]

    def plan(self, wanted: HostedModel, hosted: list[HostedModel], coming: Collection[str] = ()) -> Plan:
        """Return what must happen before a model can be loaded beside those that are, or are ``coming``."""
        spec = wanted.spec
        others = [occupant for occupant in self.occupants(hosted, coming) if occupant.model != spec.id]
        share = self._share(spec)
        plan = make_room(share, others, time.monotonic(), self.rules.min_stay, self.rules.max_loaded)
        reason = plan.refused or self._too_large(spec, share)
        if not reason:
            return plan
        return Plan(refused=f"model {spec.id!r} does not fit: {reason}. {describe(spec)}".strip())

    def fit_together(self, one: HostedModel, other: HostedModel) -> bool:
        """Whether two models may be loaded side by side."""
        both = [Occupant(one.spec.id, self._share(one.spec), pinned=True)]
        return not make_room(self._share(other.spec), both, 0, 0, self.rules.max_loaded).refused

    def occupants(self, hosted: list[HostedModel], coming: Collection[str] = ()) -> list[Occupant]:
        """Return who has memory, and since when, or is about to get it."""
        return [self._occupant(each, coming) for each in hosted if each.engine is not None or each.spec.id in coming]

    async def wait_for_memory(self, hosted: HostedModel) -> None:
        """Wait for what an engine gave back; what another program holds is told, and the engine judges by itself."""
        spec = hosted.spec
        # What sleeps has its own context there.
        own = 0 if hosted.engine is None else _ASLEEP_BYTES
        if spec.engine == "fake":
            return
        ends = time.monotonic() + _RETURN_SECONDS
        while True:
            memory = await asyncio.to_thread(self._memory.read)
            needed = int((self._share(spec) - SLACK) * memory.total) - own
            if memory.free >= needed:
                return
            if time.monotonic() >= ends:
                holders = await asyncio.to_thread(self._memory.holders)
                log.warning(
                    "Less memory is free than the model shall get: %s of %s; held: %s",
                    *(mebibytes(memory.free), mebibytes(needed), holders or "by other programs"),
                    extra={"model": spec.id},
                )
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def _occupant(self, hosted: HostedModel, coming: Collection[str]) -> Occupant:
        spec = hosted.spec
        asleep = hosted.state == ModelStatus.ASLEEP and spec.id not in coming
        can_sleep = hosted.engine is not None and hosted.engine.can_sleep
        return Occupant(
            model=spec.id,
            share=self._asleep_share(spec) if asleep else self._share(spec),
            pinned=spec.pinned,
            running=self._active_requests.of_model(spec.id),
            ready_at=hosted.ready_at,
            load_seconds=hosted.load_seconds,
            used_at=max(hosted.ready_at, self._active_requests.ended_at.get(spec.id, 0.0)),
            asleep=asleep,
            asleep_share=self._asleep_share(spec) if can_sleep else None,
        )

    def _share(self, spec: ModelSpec) -> float:
        return memory_share(spec, self._total)

    def _asleep_share(self, spec: ModelSpec) -> float:
        return 0.0 if spec.engine == "fake" else _ASLEEP_BYTES / self._total

    def _too_large(self, spec: ModelSpec, share: float) -> str:
        """Return why a model could not even be loaded into an empty memory; '' where it could."""
        needed = None if spec.engine == "fake" else least_memory(spec)
        if needed is None or needed <= self._total * share:
            return ""
        return f"it needs {mebibytes(needed)} at the least and may take {share:.0%} of {mebibytes(self._total)}"
