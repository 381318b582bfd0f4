"""docs/configuration.md names every variable and every model key, as the code has them."""

import re
from dataclasses import fields
from pathlib import Path

from cli.configuration import reference
from engines.model_spec import ModelSpec
from engines.registry import parse_registry
from settings import ROOT, Settings

_ROOMS = ("cli", "engines", "launcher", "services", "store", "tasks", "webapp", "bin")
_NAME = re.compile(r"\b(?:CY_LLM_[A-Z0-9]+(?:_[A-Z0-9]+)*|GATEWAY_API_TOKEN|REDIS_URL|DATABASE_URL)\b")
#: A value of each key that takes no number.
_TYPICAL = {
    "model_path": "demo",
    "name": "Demo",
    "engine": "fake",
    "prompt_format": "raw",
    "dtype": "auto",
    "quantization": "fp8",
    "kv_cache_dtype": "fp8",
    "enable_prefix_caching": True,
    "enforce_eager": True,
    "adapter_path": "a",
    "enable_lora": True,
    "max_lora_rank": 8,
    "tool_call_parser": "hermes",
    "allow_auto_tuning": True,
    "aliases": ["demo-too"],
    "task": "generate",
    "chat_template": "{{ messages }}",
    "speculative_config": {"method": "ngram"},
    "limit_mm_per_prompt": {"image": 1},
    "engine_args": {"block_size": 16},
    "generation_defaults": "model",
    "enable_auto_tools": False,
    "reasoning_parser": "qwen3",
}
_DOCUMENT = ROOT / "docs" / "configuration.md"


def sources() -> list[Path]:
    files = [*ROOT.glob("*.py"), ROOT / "Procfile"]
    for room in _ROOMS:
        files += [path for path in (ROOT / room).rglob("*") if path.is_file() and path.suffix in ("", ".py", ".lua")]
    return files


def documented() -> set[str]:
    """Variables that have a row of their own."""
    return set(re.findall(r"^\| `([A-Z0-9_]+)` \|", _DOCUMENT.read_text(), re.MULTILINE))


def test_the_document_is_what_the_code_says() -> None:
    assert _DOCUMENT.read_text() == reference(), "run: bin/cy-llm configuration > docs/configuration.md"


def test_every_variable_that_code_names_is_documented() -> None:
    named = {name for path in sources() for name in _NAME.findall(path.read_text())}
    assert len(named) > 30
    assert named - documented() == set()


def test_every_key_that_a_model_file_may_have_is_documented() -> None:
    models = _DOCUMENT.read_text().split("## The model file")[1]
    keys = set(re.findall(r"^\| `([a-z0-9_]+)` \|", models, re.MULTILINE))
    for key in [each.name for each in fields(ModelSpec) if each.name not in ("id", "location")]:
        parse_registry({"m": {"model_path": "demo", key: _TYPICAL.get(key, 1)}}, ROOT)
        assert key in keys
    assert len(keys) > 20


def test_every_setting_has_a_row() -> None:
    assert {setting.metadata["variable"] for setting in fields(Settings)} == documented()
