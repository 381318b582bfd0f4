"""``engine_args``: what is ours is refused with a reason; the rest is vLLM's own parser's to judge."""

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from engines.engine_args import checked_engine_args
from engines.errors import ConfigError
from engines.registry import parse_registry
from settings import ROOT
from tests.conftest import require


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("trust_remote_code", "never run"),
        ("trustRemoteCode", "never run"),
        ("--trust-remote-code", "never run"),
        ("model", "model_path"),
        ("worker_cls", "names code"),
        ("master_port", "ports"),
        ("enable_lora", "key of its own"),
        ("max_model_len", "key of its own"),
        ("lora_target_modules", "enable_lora"),
        ("hf_token", "HF_TOKEN"),
        ("allowed_local_media_path", "files"),
        ("scheduling_policy", "priority"),
        ("kv_transfer_config", "code"),
        ("spec_model", "speculative_config"),
        ("tokenizer", "model_path"),
    ],
)
def test_what_is_ours_is_refused_with_a_reason(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        checked_engine_args("m", {name: 1})
    assert "'m'" in str(caught.value) and repr(name) in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"structured_outputs_config": {"reasoning_parser_plugin": "/x.py"}},
        {"compilation_config": {"debug_dump_path": "/x"}},
        {"compilationConfig": {"backend": "os.system"}},
        {"hf_overrides": {"a": [{"auto_map_path": "x"}]}},
    ],
)
def test_code_and_files_are_refused_inside_as_well(given: dict) -> None:
    with pytest.raises(ConfigError, match=r"may not be given|must be one of"):
        checked_engine_args("m", given)
    assert checked_engine_args("m", {"compilation_config": {"backend": "eager", "cudagraph_mode": "NONE"}})


def test_names_may_be_written_in_each_style() -> None:
    given = {"maxNumBatchedTokens": 1, "--block-size": 16, "seed": None}
    assert checked_engine_args("m", given) == {"max_num_batched_tokens": 1, "block_size": 16}
    with pytest.raises(ConfigError, match="twice"):
        checked_engine_args("m", {"block_size": 1, "blockSize": 2})


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"task": "embedding"}, "'task'"),
        ({"task": "embed", "engine": "cuda-vllm"}, "cuda-vllm-async"),
        ({"task": "embed", "enable_lora": True}, "adapters"),
        ({"task": "score", "tool_call_parser": "hermes"}, "'tool_call_parser'"),
        ({"engine_args": [1]}, "'engine_args'"),
        ({"limit_mm_per_prompt": {"image": "many"}}, "'limit_mm_per_prompt'"),
        ({"generation_defaults": "mine"}, "document, model"),
        ({"aliases": ["b", "no/pe"]}, "'aliases'"),
        ({"aliases": ["other"]}, "another model"),
        ({"speculative_config": {"method": "custom_class", "model": "a.B"}}, "names code"),
    ],
)
def test_a_key_that_cannot_be_is_named(entry: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_registry({"m": {"model_path": "x", **entry}, "other": {"model_path": "y"}}, ROOT)


def test_config_check_judges_by_vllm_s_own_parser(tmp_path: Path) -> None:
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    demo = str(ROOT / "models" / "demo")
    entries = {
        "number": {"engine_args": {"block_size": "x"}},
        "unknown": {"engine_args": {"max_num_batch_tokens": 1}},
        "flag": {"engine_args": {"enable_chunked_prefill": "yes"}},
        "nested": {"engine_args": {"compilation_config": {"levle": 1}}},
        "listed": {"engine_args": {"cudagraph_capture_sizes": 4}},
        "option": {"engine_args": {"ignore_patterns": ["a", "--help"]}},
        "parser": {"tool_call_parser": "hermess"},
        "thinks": {"reasoning_parser": "qwen"},
        "template": {"chat_template": "{% if %}"},
        "file": {"chat_template": "missing.jinja"},
        "right": {
            "engine_args": {"maxNumBatchedTokens": "8k", "enable_chunked_prefill": False, "seed": 3},
            "speculative_config": {"method": "ngram", "num_speculative_tokens": 2},
        },
    }
    file = tmp_path / "models.json"
    file.write_text(json.dumps({key: {"model_path": demo, **entry} for key, entry in entries.items()}))
    done = subprocess.run([ROOT / "bin" / "cy-llm", "config", "check", file], capture_output=True, text=True)
    faults = [line for line in done.stderr.splitlines() if line.startswith("cy-llm: ")]
    assert done.returncode == 1, done.stderr
    assert len(faults) == len(entries) - 1, done.stderr
    for fault, (model, entry) in zip(faults, entries.items(), strict=False):
        [(key, value)] = entry.items()
        name = next(iter(value)) if isinstance(value, dict) else key
        assert f"'{model}'" in fault and f"'{name}'" in fault
    assert "did you mean max_num_batched_tokens" in faults[1]
    file.write_text(json.dumps({"right": {"model_path": demo, **entries["right"]}}))
    done = subprocess.run([ROOT / "bin" / "cy-llm", "config", "check", file], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "right: in order\n"), done.stderr
