"""How much memory there is for models, how much of it is free, and who holds the rest."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from engines.sizing import mebibytes

log = logging.getLogger(__name__)

#: What a card may have been promised to and still be called free: drivers and contexts keep a little. Share of it.
SLACK = 0.02


@dataclass(frozen=True)
class Memory:
    """Bytes of one card, or of the host."""

    total: int
    free: int


class DeviceMemory:
    """The cards that a worker may use; on a machine without one, the host's memory.

    Read through NVIDIA's management library, which, unlike CUDA, takes none of it.
    """

    def __init__(self, visible: str | None) -> None:
        """``visible`` is what ``CUDA_VISIBLE_DEVICES`` says; None is every card."""
        self._visible = visible

    def read(self) -> Memory:
        """Return the fullest card's memory: an engine takes the same share of each."""
        infos = self._ask(lambda nvml, card: nvml.nvmlDeviceGetMemoryInfo(card))
        if infos:
            fullest = min(infos, key=lambda info: info.free / info.total)
            return Memory(int(fullest.total), int(fullest.free))
        host = _host()
        return Memory(host.total, host.available)

    def holders(self) -> str:
        """Return who holds memory of the cards and how much, for messages; '' where nobody can be named."""
        found = []
        for processes in self._ask(lambda nvml, card: nvml.nvmlDeviceGetComputeRunningProcesses(card)):
            for process in processes:
                held = f"{mebibytes(process.usedGpuMemory)} by " if process.usedGpuMemory else ""
                found.append(f"{held}process {process.pid}{_name(process.pid)}")
        return ", ".join(found)

    def _ask(self, question: Callable[[Any, Any], Any]) -> list[Any]:
        """Return each card's answer; none where there is no card, or one that does not know."""
        with _nvml() as nvml:
            if nvml is None:
                return []
            try:
                return [question(nvml, card) for card in self._handles(nvml)]
            except nvml.NVMLError as error:
                # Cards that share the host's memory have no number of their own.
                log.warning("NVIDIA's library does not tell: %s", error)
                return []

    def _handles(self, nvml: Any) -> list[Any]:
        if self._visible is None:
            return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        names = [name.strip() for name in self._visible.split(",") if name.strip() and name.strip() != "-1"]
        return [
            nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
            for name in names
        ]


def host_memory_free() -> int:
    """Return how many bytes of the host's memory can be had without swapping."""
    return int(_host().available)


def _host() -> Any:
    # It comes with vLLM: a worker of the web packages alone has none, and does not ask.
    import psutil

    return psutil.virtual_memory()


@contextmanager
def _nvml() -> Iterator[Any]:
    """Yield NVIDIA's management library; None where it, or a card, is missing."""
    try:
        # Comes with vLLM's CUDA build alone.
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:
        log.debug("No NVIDIA card can be asked: %r", error)
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _name(pid: int) -> str:
    import psutil

    try:
        return f" ({psutil.Process(pid).name()})"
    except psutil.Error:
        return ""
