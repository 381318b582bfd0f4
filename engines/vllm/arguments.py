"""A model's entry -> vLLM's engine arguments; ``engine_args`` is judged by vLLM's own parser."""

import argparse
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.config import LoggingConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform

from engines.errors import ConfigError
from engines.model_entry import is_template_text
from engines.model_spec import GenerationDefaults, ModelSpec, Task
from engines.models.fetch import recorded_dtype
from engines.shares import memory_share
from engines.vllm.internals import ONE_PROCESS_EXECUTOR, WrongArgument, engine_argument_parser, known_parsers
from text import decode

#: The engine core drains by itself when the whole process group is told to stop, so
#: that a worker's own drain is not cut short. Seconds.
_CORE_DRAIN_SECONDS = 600
#: What vLLM calls a model that answers with numbers: what it is run as, and what it is made into.
_CONVERT = {Task.EMBED: "embed", Task.SCORE: "classify", Task.CLASSIFY: "classify"}
#: Keys of an entry that vLLM has by the same name; None leaves its own default.
_SAME_NAME = (
    *("max_model_len", "max_num_seqs", "gpu_memory_utilization", "kv_cache_memory_bytes", "kv_cache_dtype"),
    *("enable_prefix_caching", "enforce_eager", "max_logprobs", "speculative_config", "limit_mm_per_prompt"),
)


def engine_arguments(spec: ModelSpec, logging_config: str | None = None) -> AsyncEngineArgs:
    """Return vLLM's arguments for a model; what its entry leaves open stays vLLM's default. Raises ``ConfigError``."""
    arguments: dict[str, Any] = {
        "model": spec.location,
        "served_model_name": [spec.id],
        "tensor_parallel_size": spec.tensor_parallel_size,
        "dtype": _dtype(spec),
        "quantization": spec.quantization,
        "trust_remote_code": False,
        "enable_log_requests": False,
        "shutdown_timeout": _CORE_DRAIN_SECONDS,
        "generation_config": generation_config(spec),
        "scheduling_policy": "priority",
    }
    arguments |= {name: getattr(spec, name) for name in _SAME_NAME if getattr(spec, name) is not None}
    if not spec.generates:
        arguments |= {"runner": "pooling", "convert": _CONVERT[spec.task]}
    if spec.reasoning_parser is not None:
        arguments["reasoning_parser"] = spec.reasoning_parser
    if spec.tensor_parallel_size == 1:
        # On a CPU vLLM's own choice is a second process, and both spin (``engines.vllm.cpu``). A model that is
        # split over several GPUs keeps vLLM's choice, whose processes watch the core's death themselves.
        arguments["distributed_executor_backend"] = ONE_PROCESS_EXECUTOR
    if spec.kv_cache_memory_bytes is not None and spec.gpu_memory_utilization is None and not current_platform.is_cpu():
        # On a GPU vLLM asks for its usual share to be free even where the cache has a size of its own.
        total = current_platform.get_device_total_memory()
        arguments["gpu_memory_utilization"] = max(0.01, round(memory_share(spec, total), 3))
    if spec.sleep_mode and current_platform.is_sleep_mode_available():
        arguments["enable_sleep_mode"] = True
    if spec.takes_adapters:
        arguments |= {"enable_lora": True, "max_loras": spec.max_loras, "max_lora_rank": spec.max_lora_rank}
    if logging_config:
        arguments["logging_config"] = LoggingConfig(pylogging_config_file=logging_config)
    require_known_parsers(spec)
    return AsyncEngineArgs(**{**arguments, **parse_engine_args(spec.id, spec.engine_args)})


def _dtype(spec: ModelSpec) -> str:
    return recorded_dtype(spec.location) or spec.dtype if spec.dtype == "auto" else spec.dtype


def command_line(spec: ModelSpec) -> list[str]:
    """Return what ``vllm serve`` is told of a model to serve it as this system does, but for its place and its name.

    Left out is what is this system's own: the order of requests, logs, sleep. Raises ``ConfigError``.
    """
    # Judged as the engine's own are.
    parse_engine_args(spec.id, spec.engine_args)
    values = {name: getattr(spec, name) for name in ("quantization", "reasoning_parser", *_SAME_NAME)}
    values |= {"tensor_parallel_size": spec.tensor_parallel_size, "dtype": _dtype(spec), **spec.engine_args}
    if spec.takes_adapters:
        values |= {"enable_lora": True, "max_loras": spec.max_loras, "max_lora_rank": spec.max_lora_rank}
    actions = {action.dest: action for action in engine_argument_parser()._actions}
    words = [word for name, value in values.items() if value is not None for word in _words(actions[name], value)]
    template = chat_template_text(spec)
    if template is not None:
        words.append(f"--chat-template={template}")
    if spec.tool_call_parser is not None:
        words += ["--tool-call-parser", spec.tool_call_parser]
        words += ["--enable-auto-tool-choice"] if spec.enable_auto_tools else []
    return words


def generation_config(spec: ModelSpec) -> str:
    """Return vLLM's word for where sampling comes from that a request leaves out."""
    return "auto" if spec.generation_defaults == GenerationDefaults.MODEL else "vllm"


def chat_template_text(spec: ModelSpec) -> str | None:
    """Return the template that replaces the tokenizer's own, None where there is none. Raises ``ConfigError``."""
    if spec.chat_template is None or is_template_text(spec.chat_template):
        return spec.chat_template
    try:
        return decode(Path(spec.chat_template).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {spec.id!r}: key 'chat_template': the file cannot be read: {error}") from None


def require_known_parsers(spec: ModelSpec) -> None:
    """Raise ``ConfigError`` for a parser of tools or of reasoning that the installed vLLM does not have."""
    for key, known in known_parsers().items():
        name = getattr(spec, key)
        if name is not None and name not in known:
            raise ConfigError(f"model {spec.id!r}: key {key!r}: vLLM has no parser {name!r}; known: {', '.join(known)}")


def parse_engine_args(model_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``engine_args`` as vLLM's parser reads them. Raises ``ConfigError``, which names model and argument."""
    if not given:
        return {}
    parser = engine_argument_parser()
    actions = {action.dest: action for action in parser._actions}
    found: dict[str, Any] = {}
    for name, value in given.items():
        where = f"model {model_id!r}: engine_args: {name!r}"
        if name not in actions:
            raise ConfigError(f"{where} is no argument of the installed vLLM's engine{_alike(name, actions)}")
        try:
            words = _words(actions[name], value)
            found[name] = getattr(parser.parse_args(words), name)
        except (WrongArgument, argparse.ArgumentTypeError, ValueError, TypeError, OSError, RecursionError) as error:
            raise ConfigError(f"{where}: {_one_line(str(error))}") from None
    return found


def _one_line(message: str) -> str:
    """Return what pydantic says in several lines as one, without its address."""
    lines = [line.strip() for line in message.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("For further information"))


def _words(action: argparse.Action, value: Any) -> list[str]:
    """Return a value as it would stand on vLLM's command line. Raises ``ValueError``."""
    option = max(action.option_strings, key=len)
    positive = next(name for name in action.option_strings if name.startswith("--") and not name.startswith("--no-"))
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"must be true or false, not {json.dumps(value)}")
        if value:
            return [positive]
        if isinstance(action, argparse.BooleanOptionalAction):
            return [next(name for name in action.option_strings if name.startswith("--no-"))]
        return []
    if isinstance(value, bool):
        raise ValueError(f"must not be {json.dumps(value)}")
    if isinstance(value, dict):
        return [f"{option}={json.dumps(value)}"]
    if isinstance(value, list):
        if action.nargs not in ("+", "*"):
            raise ValueError("must not be a list")
        if any(isinstance(part, str) and part.startswith("-") for part in value):
            raise ValueError("a part must not begin with '-'")
        return [option, *(str(part) for part in value)]
    if action.nargs in ("+", "*"):
        raise ValueError(f"must be a list, not {json.dumps(value)}")
    return [f"{option}={value}"]


def _alike(name: str, known: Mapping[str, argparse.Action]) -> str:

    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""
