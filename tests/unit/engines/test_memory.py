"""How much memory there is for models, by NVIDIA's library; the library is made up."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from engines.memory import DeviceMemory, Memory

_CARDS = {"0": (100, 40), "1": (200, 20), "GPU-abc": (300, 300)}


class _NVMLError(Exception):
    pass


def _library(knows: bool = True) -> Any:
    def memory(card: str) -> Any:
        if not knows:
            raise _NVMLError("Not Supported")
        total, free = _CARDS[card]
        return SimpleNamespace(total=total, free=free)

    def processes(card: str) -> list[Any]:
        if not knows:
            raise _NVMLError("Not Supported")
        return [SimpleNamespace(pid=os.getpid(), usedGpuMemory=2**31), SimpleNamespace(pid=2**30, usedGpuMemory=None)]

    return SimpleNamespace(
        NVMLError=_NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=str,
        nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetComputeRunningProcesses=processes,
    )


@pytest.mark.parametrize(
    ("visible", "memory"),
    [(None, Memory(200, 20)), ("0", Memory(100, 40)), ("GPU-abc, 0", Memory(100, 40)), ("GPU-abc", Memory(300, 300))],
)
def test_the_fullest_of_the_visible_cards(monkeypatch: pytest.MonkeyPatch, visible: str | None, memory: Memory) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _library())
    assert DeviceMemory(visible).read() == memory


@pytest.mark.parametrize("visible", ["", "-1"])
def test_without_a_visible_card_it_is_the_host(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _library())
    assert DeviceMemory(visible).read().total == psutil.virtual_memory().total


def test_a_card_that_does_not_tell_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _library(knows=False))
    assert DeviceMemory("0").read().total == psutil.virtual_memory().total
    assert DeviceMemory("0").holders() == ""


def test_who_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _library())
    name = psutil.Process().name()
    assert DeviceMemory("0").holders() == f"2.00 GiB by process {os.getpid()} ({name}), process {2**30}"
