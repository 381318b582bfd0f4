"""What part of a card's memory a model is given, and what it needs at the least: for workers that serve several."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from engines.model_spec import ModelSpec
from engines.sizing import CONTEXT_BYTES, UTILIZATION, CannotSize, Sizes, read_folder, sizes_of

#: The shortest context that automatic tuning goes down to (``engines.vllm.tuning``). Tokens.
_LEAST_CONTEXT = 256


def memory_share(spec: ModelSpec, total: int) -> float:
    """Return the share (0 to 1) of ``total`` bytes that the model's engine takes for itself."""
    if spec.kv_cache_memory_bytes is None:
        return spec.gpu_memory_utilization or UTILIZATION
    sizes = _sizes(spec)
    fixed = CONTEXT_BYTES if sizes is None else sizes.fixed
    return min(1.0, (fixed + spec.kv_cache_memory_bytes) / total)


def least_memory(spec: ModelSpec) -> int | None:
    """Return the bytes without which the model cannot be loaded; None where its files do not tell."""
    sizes = _sizes(spec)
    if sizes is None:
        return None
    context = min(_LEAST_CONTEXT, sizes.max_model_len) if spec.allow_auto_tuning else sizes.max_model_len
    return sizes.weights + sizes.kv_per_token * context


def weights_bytes(spec: ModelSpec) -> int | None:
    """Return the bytes of the model's weights on all cards together; None where its files do not tell."""
    sizes = _sizes(spec)
    return None if sizes is None else sizes.weights * spec.tensor_parallel_size


def _sizes(spec: ModelSpec) -> Sizes | None:
    try:
        changed = (Path(spec.location) / "config.json").stat().st_mtime_ns
        return sizes_of(spec, *_read_folder(spec.location, changed))
    except (CannotSize, OSError):
        return None


@lru_cache(maxsize=64)
def _read_folder(location: str, changed: int) -> tuple[dict[str, Any], int]:
    """Read each folder once: the sizes are asked for again and again where engines are waited for."""
    return read_folder(Path(location))
