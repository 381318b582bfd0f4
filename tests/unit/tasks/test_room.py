"""Whether a model fits, before anything is unloaded for it; memory that comes back. The card is made up."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engines.memory import DeviceMemory, Memory
from engines.model_spec import ModelSpec
from settings import ROOT
from tasks.worker.inference.active_requests import ActiveRequests
from tasks.worker.models import room as room_module
from tasks.worker.models.hosted import DesiredModel, HostedModel
from tasks.worker.models.room import Room, SwapRules

GIB = 2**30
DEMO = ModelSpec(id="demo", model_path="demo", location=str(ROOT / "models" / "demo"))


class Card(DeviceMemory):
    """A card of 10 GiB, of which ``free`` is free: one value for each look, the last one for all further."""

    def __init__(self, *free: float) -> None:
        super().__init__(None)
        self._free = list(free) or [10.0]

    def read(self) -> Memory:
        value = self._free.pop(0) if len(self._free) > 1 else self._free[0]
        return Memory(10 * GIB, int(value * GIB))

    def holders(self) -> str:
        return "6.00 GiB by process 42 (game)"


def room(*free: float, rules: SwapRules | None = None) -> Room:
    return Room(Card(*free), rules or SwapRules(), ActiveRequests())


def hosted(spec: ModelSpec) -> HostedModel:
    return HostedModel(DesiredModel(spec), on_demand=True)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(room_module, "_RETURN_SECONDS", 0.3)
    monkeypatch.setattr(room_module, "_LOOK_SECONDS", 0.01)
    yield


def test_too_large_is_refused_with_the_numbers() -> None:
    spec = replace(DEMO, gpu_memory_utilization=0.0001)
    refused = room().plan(hosted(spec), []).refused
    assert "model 'demo' does not fit: it needs 4." in refused
    assert "at the least and may take 0% of 10.00 GiB. Weights 4." in refused
    assert room().plan(hosted(replace(DEMO, gpu_memory_utilization=0.1)), []).refused == ""


def test_what_cannot_be_tuned_down_must_fit_whole() -> None:
    """1.2 KiB a token: a context of a million tokens needs 1.2 GB."""
    spec = replace(DEMO, gpu_memory_utilization=0.05, max_model_len=1_000_000, allow_auto_tuning=False)
    assert "at the least" in room().plan(hosted(spec), []).refused
    assert room().plan(hosted(replace(spec, allow_auto_tuning=True)), []).refused == ""


def test_a_model_whose_files_are_not_here_yet_is_tried() -> None:
    spec = replace(DEMO, location="owner/name", gpu_memory_utilization=0.0001)
    assert room().plan(hosted(spec), []).refused == ""


def test_a_cache_of_known_size_takes_what_it_says() -> None:
    specs = [replace(DEMO, id=str(number), kv_cache_memory_bytes=GIB) for number in range(6)]
    # Each takes 1 GiB, 1.3 GB of context and some for the weights: four of 10 GiB.
    assert room().at_start(specs) == ["0", "1", "2", "3"]
    assert room(rules=SwapRules(max_loaded=2)).at_start(specs) == ["0", "1"]


def test_at_the_start_pinned_ones_come_first() -> None:
    specs = [replace(DEMO, id="a"), replace(DEMO, id="b", pinned=True)]
    assert room().at_start(specs) == ["b"]


def test_memory_that_comes_back_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(room(10, 1, 2, 9.5).wait_for_memory(hosted(DEMO)))
    assert caplog.text == ""


def test_who_holds_it_is_named_when_it_does_not_come_back(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        asyncio.run(room(10, 4).wait_for_memory(hosted(DEMO)))
    assert "4.00 GiB of 9.00 GiB; held: 6.00 GiB by process 42 (game)" in caplog.text


def test_memory_of_this_machine(tmp_path: Path) -> None:
    memory = DeviceMemory(None).read()
    assert 0 < memory.free <= memory.total
    assert DeviceMemory("").read().total > 0
