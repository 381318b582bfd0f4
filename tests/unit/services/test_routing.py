"""Which queue takes a request, and when none does."""

from typing import Any

import pytest

from engines.model_spec import ModelSpec
from services.errors import ModelNotReady, QueueFull
from services.inference.routing import Router
from store.redis.presence import Fleet, State, WorkerInfo


def worker(name: str, state: str = State.READY, *queues: str) -> WorkerInfo:
    found = {"name": name, "instance_id": name, "state": state, "models": {"m": {}}, "queues": queues or ("gpu-infer",)}
    return WorkerInfo(**found)  # type: ignore[arg-type]


class Presence:
    """Two lists: the one remembered, and the one looked up afresh."""

    def __init__(self, cached: list[WorkerInfo], fresh: list[WorkerInfo] | None = None) -> None:
        self._cached = Fleet(tuple(cached))
        self._fresh = Fleet(tuple(cached if fresh is None else fresh))

    def fleet(self, fresh: bool = False) -> Fleet:
        return self._fresh if fresh else self._cached


class Depth:
    def __init__(self, waiting: int) -> None:
        self._waiting = waiting

    def pending(self, queue: str, bound: int) -> int:
        return self._waiting


def router(presence: Presence, waiting: int = 0, bound: int = 10) -> Router:
    made: Any = Router
    router: Router = made(presence, Depth(waiting), bound)
    return router


SPEC = ModelSpec("m", "none")


def test_the_common_queue_then_the_models_then_the_hinted_workers() -> None:
    assert router(Presence([worker("a")])).route_request(SPEC).queue == "gpu-infer"
    both = Presence([worker("b", State.READY, "gpu-infer", "gpu-infer.m")])
    assert router(both).route_request(SPEC).queue == "gpu-infer.m"
    assert router(both).route_request(SPEC, "b").queue == "gpu-infer@b"
    assert router(both).route_request(SPEC, "gone").queue == "gpu-infer.m"


def test_workers_at_either_queue_get_their_share() -> None:
    """One more worker must not take everything from those that were there."""
    mixed = router(Presence([worker("a"), worker("b"), worker("c", State.READY, "gpu-infer", "gpu-infer.m")]))
    chosen = [mixed.route_request(SPEC).queue for _ in range(3000)]
    # A third is 1000; six standard deviations are 155.
    assert chosen.count("gpu-infer.m") == pytest.approx(1000, abs=155)
    assert set(chosen) == {"gpu-infer", "gpu-infer.m"}


def test_a_worker_that_has_just_come_is_found() -> None:
    assert router(Presence([], [worker("a")])).route_request(SPEC).queue == "gpu-infer"


@pytest.mark.parametrize(("workers", "wait"), [([], 30), ([worker("a", State.LOADING)], 5)])
def test_nobody_serves_it(workers: list[WorkerInfo], wait: int) -> None:
    with pytest.raises(ModelNotReady) as refused:
        router(Presence(workers)).route_request(SPEC)
    assert refused.value.retry_after == wait


@pytest.mark.parametrize(("max_pending", "waiting", "full"), [(0, 9, False), (0, 10, True), (3, 3, True)])
def test_the_bound_is_the_models_or_everybodys(max_pending: int, waiting: int, full: bool) -> None:
    spec = ModelSpec("m", "none", max_pending=max_pending)
    if not full:
        router(Presence([worker("a")]), waiting).route_request(spec)
        return
    with pytest.raises(QueueFull, match=f"{waiting} requests"):
        router(Presence([worker("a")]), waiting).route_request(spec)
