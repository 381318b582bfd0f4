"""How much memory a model takes, from its config and its files alone: what ``bin/cy-llm diagnose`` shows.

Exact: the weights as they lie on the disk, and the bytes of the KV cache that a token of a plain attention layer takes
(two vectors of ``head_dim`` for each KV head and layer). All else is an estimate, on the safe side.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.model_spec import ModelSpec

#: Memory of the cards that models are mostly served on. Bytes, as their makers count (GB).
CARDS = {
    "T4, RTX 4060 Ti (16 GB)": 16 * 10**9,
    "L4, A10, RTX 4090 (24 GB)": 24 * 10**9,
    "RTX 5090 (32 GB)": 32 * 10**9,
    "A100 (40 GB)": 40 * 10**9,
    "L40S, A6000 (48 GB)": 48 * 10**9,
    "A100, H100 (80 GB)": 80 * 10**9,
    "H200 (141 GB)": 141 * 10**9,
    "B200 (180 GB)": 180 * 10**9,
}
#: vLLM's defaults, where the model file leaves a value open.
UTILIZATION, _NUM_SEQS, _BATCHED_TOKENS = 0.92, 256, 8192
#: CUDA's context, cuBLAS's workspaces and captured graphs. Bytes; measured values lie between 0.7 and 1.3 GB.
CONTEXT_BYTES = 1_300_000_000
_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
#: What an element of a KV cache of each type takes.
_KV_BYTES = {"auto": 0, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "bfloat16": 2, "float16": 2}
#: Kinds of layers whose cache grows by as much with each token.
_PLAIN_LAYERS = {"full_attention", "attention", "sliding_attention"}


class CannotSize(Exception):
    """The model's files do not tell; the message says what is missing."""


@dataclass(frozen=True)
class Sizes:
    """One model in bytes, on each of the cards that it is split over."""

    weights: int
    kv_per_token: int
    #: Whether the KV cache of all layers is of the plain kind.
    exact_kv: bool
    activations: int
    adapters: int
    max_model_len: int
    max_num_seqs: int

    @property
    def fixed(self) -> int:
        """What is taken before the first token is kept."""
        return self.weights + self.activations + self.adapters + CONTEXT_BYTES


@dataclass(frozen=True)
class Fit:
    """A model on one card."""

    #: Tokens that the KV cache holds; 0 where not even the weights fit.
    tokens: int
    #: The longest context of one request.
    context: int
    #: Requests of that length at once.
    batch: int


def sizes_of(spec: ModelSpec, config: Mapping[str, Any], weights: int) -> Sizes:
    """Return a model's sizes; ``weights`` is what its files hold, in bytes. Raises ``CannotSize``."""
    config = config.get("text_config") or config
    try:
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads = int(config["num_attention_heads"])
    except (KeyError, TypeError, ValueError) as error:
        raise CannotSize(f"config.json does not say {error}") from None
    split = spec.tensor_parallel_size
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or hidden // heads)
    own = _BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 2)
    # vLLM's "auto" serves float32 weights in 16 bits.
    element = min(own, 2) if spec.dtype == "auto" else _BYTES[spec.dtype]
    kv_element = _KV_BYTES.get(spec.kv_cache_dtype or "auto", 1) or element
    if config.get("kv_lora_rank"):
        # Multi-head latent attention keeps one compressed vector a token, on every card.
        per_layer = (int(config["kv_lora_rank"]) + int(config.get("qk_rope_head_dim") or 0)) * kv_element
    else:
        per_layer = 2 * max(1, kv_heads // split) * head_dim * kv_element
    kinds = set(config.get("layer_types") or ())
    inner = int(config.get("intermediate_size") or 4 * hidden)
    vocabulary = int(config.get("vocab_size") or 0)
    batched = int(spec.engine_args.get("max_num_batched_tokens") or _BATCHED_TOKENS)
    seqs = spec.max_num_seqs or _NUM_SEQS
    # The widest layer's inputs and outputs, and the logits of a whole batch in 32 bits.
    activations = batched * (2 * inner // split + 4 * hidden) * element + seqs * vocabulary * 4
    adapters = 0
    if spec.takes_adapters:
        width = 2 * (2 * hidden) + 2 * (hidden + kv_heads * head_dim) + 3 * (hidden + inner)
        adapters = spec.max_loras * spec.max_lora_rank * width * layers * element // split
    scale = element / own if element != own else 1
    return Sizes(
        weights=int(weights * scale) // split,
        kv_per_token=per_layer * layers,
        exact_kv=kinds <= _PLAIN_LAYERS and "mamba" not in str(config.get("model_type", "")),
        activations=activations,
        adapters=adapters,
        max_model_len=spec.max_model_len or int(config.get("max_position_embeddings") or 2048),
        max_num_seqs=seqs,
    )


def fit(sizes: Sizes, spec: ModelSpec, memory: int) -> Fit:
    """Return what fits on a card with ``memory`` bytes that nobody else uses."""
    room = int(memory * (spec.gpu_memory_utilization or UTILIZATION)) - sizes.fixed
    if spec.kv_cache_memory_bytes is not None and room >= spec.kv_cache_memory_bytes:
        room = spec.kv_cache_memory_bytes
    tokens = max(0, room) // sizes.kv_per_token
    context = min(tokens, sizes.max_model_len)
    batch = min(tokens // context, sizes.max_num_seqs) if context else 0
    return Fit(tokens, context, batch)


def read_folder(folder: Path) -> tuple[dict[str, Any], int]:
    """Return a model's config, and the bytes of its weights. Raises ``CannotSize``."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotSize(f"config.json in {folder} cannot be read: {error}") from None
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return config, sum(_tensor_bytes(file) for file in files)
    files = sorted(folder.glob("*.bin"))
    if not files:
        raise CannotSize(f"{folder} holds no *.safetensors and no *.bin")
    return config, sum(file.stat().st_size for file in files)


def describe(spec: ModelSpec) -> str:
    """Return a model's sizes in one line, for messages; '' where its files do not tell."""
    try:
        sizes = sizes_of(spec, *read_folder(Path(spec.location)))
    except CannotSize:
        return ""
    return (
        f"Weights {mebibytes(sizes.weights)}, KV cache {sizes.kv_per_token / 1024:.1f} KiB a token "
        f"({mebibytes(sizes.kv_per_token * sizes.max_model_len)} for one request of {sizes.max_model_len} tokens)"
    )


def mebibytes(size: int) -> str:
    """A size as people read it."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _tensor_bytes(file: Path) -> int:
    """Return what the tensors of a safetensors file take: its header names the end of each."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise CannotSize(f"{file.name} is no whole safetensors file: {error}") from None
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    size = max(ends, default=0)
    if file.stat().st_size < 8 + length + size:
        raise CannotSize(f"{file.name} is half a file: {file.stat().st_size} of {8 + length + size} bytes")
    return int(size)
