"""What bare ``vllm serve`` is told of a model, beside what this system tells its engine."""

import warnings
from dataclasses import fields
from typing import Any

import pytest

from engines.model_spec import ModelSpec
from settings import ROOT

with warnings.catch_warnings():
    # vLLM and torch warn of what they themselves use.
    warnings.simplefilter("ignore")
    from vllm.engine.arg_utils import AsyncEngineArgs

    from engines.vllm.arguments import command_line, engine_arguments
    from engines.vllm.internals import engine_argument_parser

pytestmark = pytest.mark.filterwarnings("ignore")

_DEMO = str(ROOT / "models" / "demo")
#: This system's own; all else must be the same.
_OWN = {
    *("model", "served_model_name", "scheduling_policy", "shutdown_timeout", "generation_config"),
    "distributed_executor_backend",
}


def _parsed(words: list[str]) -> AsyncEngineArgs:
    return AsyncEngineArgs.from_cli_args(engine_argument_parser().parse_args(words))


def _changed(arguments: AsyncEngineArgs, defaults: AsyncEngineArgs) -> dict[str, Any]:
    """What differs from the defaults, which for a few are others on the command line than in Python."""
    values = {each.name: getattr(arguments, each.name) for each in fields(arguments) if each.name not in _OWN}
    return {name: value for name, value in values.items() if value != getattr(defaults, name)}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"max_model_len": 512, "enforce_eager": True, "kv_cache_memory_bytes": 2**26, "enable_prefix_caching": False},
        {"enable_lora": True, "max_loras": 2, "max_lora_rank": 32, "dtype": "float32", "max_logprobs": -1},
        {"engine_args": {"max_num_batched_tokens": 2048, "seed": 7}, "limit_mm_per_prompt": {"image": 0}},
        {"reasoning_parser": "qwen3", "speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    ],
)
def test_both_engines_get_the_same_arguments(keys: dict[str, Any]) -> None:
    spec = ModelSpec("m", _DEMO, _DEMO, **keys)
    ours = _changed(engine_arguments(spec), AsyncEngineArgs())
    assert ours == _changed(_parsed(command_line(spec)), _parsed([]))
    assert set(keys) - {"engine_args"} <= set(ours)


def test_what_only_the_server_knows() -> None:
    spec = ModelSpec("m", _DEMO, _DEMO, tool_call_parser="hermes", chat_template="{{ messages }}")
    assert command_line(spec)[-4:] == [
        "--chat-template={{ messages }}",
        "--tool-call-parser",
        "hermes",
        "--enable-auto-tool-choice",
    ]
