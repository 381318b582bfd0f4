"""vLLM on a machine without a GPU: one process computes, and it does not spin while it waits.

By default vLLM's CPU backend puts the model into a process of its own beside the engine
core, and both poll shared memory in a busy loop. On a small machine the two spinning
processes take every core, and whatever else should run (Redis, the front door) was seen
to wait for up to 400 ms. As on a GPU, one process is enough for a model that is not split.
"""

import os

import torch
from vllm.platforms import current_platform


def prepare_cpu() -> None:
    """Leave one core to the rest of the system, unless the environment says otherwise.

    The executor that would set this sits in the process that is saved.
    """
    if current_platform.is_cpu():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores - 1)))


def allow_amx() -> None:
    """Ask the kernel for this process's use of AMX, where the processor has it; to be called in an engine core.

    vLLM's attention uses AMX tiles for 16-bit models where the processor has them, and asks nobody: unless some other
    library has asked before (by chance: of what it found compiled), the core dies of SIGILL with its first request.
    Torch has no public name for either.
    """
    if current_platform.is_cpu() and torch.cpu._is_amx_tile_supported() and not torch.cpu._init_amx():
        torch.cpu._is_amx_tile_supported = lambda: False
