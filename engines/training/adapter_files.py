"""Whether an adapter folder can be served: read from its files, without torch."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from engines.model_spec import ModelSpec

#: Files of an adapter that are served; everything else of a trainer's output stays behind.
FILES = ("adapter_config.json", "adapter_model.safetensors")
_WEIGHTS = ("F16", "BF16", "F32")


class BrokenAdapter(Exception):
    """An adapter that no worker could serve; the message says why."""


@dataclass(frozen=True)
class AdapterFacts:
    """What an adapter says of itself."""

    rank: int
    #: SHA-256 over the names and contents of its files, hex.
    checksum: str


def inspect_adapter(folder: Path, spec: ModelSpec) -> AdapterFacts:
    """Check an adapter against the model that shall serve it. Raises ``BrokenAdapter``."""
    config = _config(folder)
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise BrokenAdapter("adapter_config.json names no rank")
    if config.get("bias", "none") != "none":
        raise BrokenAdapter(f"it trains biases (bias '{config['bias']}'), which vLLM cannot serve as an adapter")
    if not spec.takes_adapters:
        raise BrokenAdapter(f"model '{spec.id}' is not configured to take adapters (enableLora)")
    if rank > spec.max_lora_rank:
        raise BrokenAdapter(f"its rank {rank} is above model '{spec.id}''s maxLoraRank {spec.max_lora_rank}")
    _check_weights(folder / "adapter_model.safetensors", rank)
    return AdapterFacts(rank, _checksum(folder))


def _config(folder: Path) -> dict[str, object]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenAdapter("adapter_config.json is missing or cannot be read") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise BrokenAdapter("adapter_config.json does not describe a LoRA adapter")
    return config


def _check_weights(path: Path, rank: int) -> None:
    """Compare the file's tensors with the rank; the reader itself finds a file that is cut off."""
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: (tensor.get_dtype(), tensor.get_shape()) for name, tensor in tensors.items()}
    except (OSError, SafetensorError) as error:
        raise BrokenAdapter("adapter_model.safetensors is missing, cut off, or cannot be read") from error
    if not found:
        raise BrokenAdapter("adapter_model.safetensors holds no weights")
    for name, (dtype, shape) in found.items():
        if dtype not in _WEIGHTS:
            raise BrokenAdapter(f"{name} has weights of the kind {dtype}, not one of {', '.join(_WEIGHTS)}")
        axis = 0 if "lora_A" in name else 1
        if "lora_" in name and shape[axis] != rank:
            raise BrokenAdapter(f"{name} has the shape {shape}, which is not of rank {rank}")


def _checksum(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in FILES:
        digest.update(name.encode() + b"\0")
        with (folder / name).open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    return digest.hexdigest()
