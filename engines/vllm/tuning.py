"""The out-of-memory ladder: which smaller configuration to try when an engine does not fit.

Each step lowers one thing by a little, in the order of what users miss least: first the
memory share (another process may hold the rest), then sequences per batch, then the
context length. A KV cache that is too small for the context names the length that would
fit; that length is taken at once.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from engines.errors import EngineStartError, OutOfMemory
from engines.model_spec import ModelSpec
from engines.sizing import describe

log = logging.getLogger(__name__)
T = TypeVar("T")

#: vLLM's own defaults, used when the model file leaves a value open.
_DEFAULT_UTILIZATION = 0.92
_DEFAULT_NUM_SEQS = 256
MIN_MODEL_LEN = 256
MIN_NUM_SEQS = 4
MIN_UTILIZATION = 0.5
#: Nine starts at most: with the sizes above, no ladder is longer.
MAX_STEPS = 8

#: vLLM names the length that fits (``v1/core/kv_cache_utils.py``).
_FITTING_LEN = re.compile(r"estimated maximum model length is (\d+)")
_CONTEXT_TOO_LONG = re.compile(r"KV cache is needed, which is larger than the available KV cache")
_NO_FREE_MEMORY = re.compile(r"Free memory on device|is less than desired|not enough memory|Not enough memory")
_MEMORY = re.compile(
    r"out of memory|OutOfMemory|No available memory for the cache blocks|can't allocate memory"
    r"|MemoryError|Cannot allocate memory"
    f"|{_CONTEXT_TOO_LONG.pattern}|{_NO_FREE_MEMORY.pattern}",
    re.IGNORECASE,
)


def is_memory_failure(message: str) -> bool:
    """Whether an engine's dying words say that memory was the trouble."""
    return bool(_MEMORY.search(message))


def next_smaller(spec: ModelSpec, message: str) -> tuple[ModelSpec, str] | None:
    """Return the next configuration to try and what was changed, or None at the bottom."""
    for candidate in _candidates(spec, message):
        return candidate
    return None


def _candidates(spec: ModelSpec, message: str) -> Iterator[tuple[ModelSpec, str]]:
    if _CONTEXT_TOO_LONG.search(message):
        yield from _shorter_context(spec, message)
        return
    utilization = spec.gpu_memory_utilization or _DEFAULT_UTILIZATION
    if spec.kv_cache_memory_bytes is None and _NO_FREE_MEMORY.search(message) and utilization > MIN_UTILIZATION:
        lower = max(MIN_UTILIZATION, round(utilization - 0.1, 2))
        yield replace(spec, gpu_memory_utilization=lower), f"gpu_memory_utilization {utilization} -> {lower}"
    num_seqs = spec.max_num_seqs or _DEFAULT_NUM_SEQS
    if num_seqs > MIN_NUM_SEQS:
        fewer = max(MIN_NUM_SEQS, num_seqs // 4)
        yield replace(spec, max_num_seqs=fewer), f"max_num_seqs {num_seqs} -> {fewer}"
    yield from _shorter_context(spec, message)


def _shorter_context(spec: ModelSpec, message: str) -> Iterator[tuple[ModelSpec, str]]:
    current = spec.max_model_len
    fitting = _FITTING_LEN.search(message)
    if fitting:
        shorter = int(fitting.group(1))
    elif current is not None:
        shorter = current // 2
    else:
        shorter = 4096
    if shorter >= MIN_MODEL_LEN and (current is None or shorter < current):
        yield replace(spec, max_model_len=shorter), f"max_model_len {current or 'of the model'} -> {shorter}"


async def start_with_tuning(spec: ModelSpec, start: Callable[[ModelSpec], Awaitable[T]]) -> tuple[T, ModelSpec]:
    """Call ``start`` with ever smaller configurations until one fits.

    Returns what ``start`` returned and the configuration that fitted. Raises
    ``OutOfMemory``, naming the steps taken, when none does; any other start error at once.
    """
    steps: list[str] = []
    while True:
        try:
            return await start(spec), spec
        except OutOfMemory as error:
            step = next_smaller(spec, str(error)) if spec.allow_auto_tuning and len(steps) < MAX_STEPS else None
            if step is None:
                raise EngineStartError(_give_up(spec, steps, str(error))) from error
            spec, change = step
            steps.append(change)
            log.warning("Engine does not fit into memory, trying again smaller: %s", change, extra={"model": spec.id})


def _give_up(spec: ModelSpec, steps: list[str], message: str) -> str:
    if not spec.allow_auto_tuning:
        tried = "automatic tuning is off (allow_auto_tuning)"
    else:
        tried = f"tried {'; '.join(steps)}" if steps else "no smaller configuration is left"
    sizes = describe(spec)
    return (
        f"model {spec.id!r} does not fit into memory; {tried}. {sizes}{'. ' if sizes else ''}Free memory, choose a "
        f"smaller or quantized model, or set a smaller max_model_len (bin/cy-llm diagnose {spec.id}). "
        f"The engine said: {message}"
    )
