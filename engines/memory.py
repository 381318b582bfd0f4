"""How much memory there is for models, how much of it is free, and who holds the rest."""

import logging
from collections.abc import Iterator
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
        with _nvml() as nvml:
            if nvml is not None:
                infos = [nvml.nvmlDeviceGetMemoryInfo(handle) for handle in self._handles(nvml)]
                if infos:
                    fullest = min(infos, key=lambda info: info.free / info.total)
                    return Memory(int(fullest.total), int(fullest.free))
        host = _host()
        return Memory(host.total, host.available)

    def holders(self) -> str:
        """Return who holds memory of the cards and how much, for messages; '' where nobody can be named."""
        with _nvml() as nvml:
            if nvml is None:
                return ""
            found = []
            for handle in self._handles(nvml):
                for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                    held = f"{mebibytes(process.usedGpuMemory)} by " if process.usedGpuMemory else ""
                    found.append(f"{held}process {process.pid}{_name(process.pid)}")
            return ", ".join(found)

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
