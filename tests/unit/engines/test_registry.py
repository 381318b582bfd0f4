"""The model file: both shapes, both key styles, and messages that say what to change."""

import json
from pathlib import Path

import pytest

from engines.errors import ConfigError, UnknownModel
from engines.registry import Registry, load_registry, parse_registry
from settings import ROOT

BASE = Path("/srv")


def parse(document: object) -> Registry:
    return parse_registry(document, BASE)


def test_both_shapes_and_both_key_styles_mean_the_same() -> None:
    snake = {"model_path": "org/name", "max_model_len": 100, "gpu_memory_utilization": 0.5, "tensor_parallel_size": 2}
    camel = {"modelPath": "org/name", "maxModelLen": 100, "gpuMemoryUtilization": 0.5, "tensorParallelSize": 2}
    documents = [{"m": snake}, {"m": camel}, {"models": {"m": snake}}, {"models": {"m": camel}}]
    registries = [parse(document) for document in documents]
    assert len({repr(registry) for registry in registries}) == 1
    spec = registries[0].default
    assert (spec.max_model_len, spec.gpu_memory_utilization, spec.tensor_parallel_size) == (100, 0.5, 2)


def test_every_key_that_the_files_in_use_have_is_known() -> None:
    entry = {
        "model_path": "org/name",
        "adapter_path": "org/lora",
        "engine": "cuda-vllm",
        "quantization": "awq",
        "max_model_len": 8192,
        "tensor_parallel_size": 1,
        "enable_prefix_caching": True,
        "kv_cache_dtype": "fp8",
        "gpu_memory_utilization": 0.75,
    }
    spec = parse({"furina": entry}).resolve("furina")
    assert spec.engine == "cuda-vllm"
    assert spec.takes_adapters


@pytest.mark.parametrize(
    "document",
    [
        {"default": "b", "models": {"a": {"model_path": "x"}, "b": {"model_path": "y"}}},
        {"models": {"a": {"model_path": "x"}, "b": {"model_path": "y"}, "default": "b"}},
        {"a": {"model_path": "x"}, "b": {"model_path": "y"}, "default": "b"},
        {"b": {"model_path": "y"}, "a": {"model_path": "x"}},
    ],
)
def test_default_is_an_alias_else_the_first(document: dict) -> None:
    assert parse(document).default.id == "b"


def test_a_model_may_be_called_default() -> None:
    assert parse({"a": {"model_path": "x"}, "default": {"model_path": "y"}}).default.model_path == "y"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], ["JSON object"]),
        ({}, ["no model"]),
        ({"models": []}, ["'models'", "object"]),
        ({"models": {"m": {"model_path": "x"}}, "modles": 1}, ["'modles'", "'default'"]),
        ({"m": {}}, ["'m'", "'model_path'", "Missing"]),
        ({"m": {"model_path": ""}}, ["'m'", "'model_path'"]),
        ({"m": {"model_path": "x", "max_model_length": 5}}, ["'m'", "'max_model_length'", "max_model_len"]),
        ({"m": {"model_path": "x", "max_model_len": "8k"}}, ["'m'", "'max_model_len'", "whole number"]),
        ({"m": {"model_path": "x", "max_model_len": 0}}, ["'max_model_len'", "greater than or equal to 1"]),
        (
            {"m": {"model_path": "x", "gpuMemoryUtilization": 1.5}},
            ["'gpu_memory_utilization'", "or equal to 1"],
        ),
        ({"m": {"model_path": "x", "enable_lora": "yes"}}, ["'enable_lora'", "boolean"]),
        ({"m": {"model_path": "x", "prompt_format": "xml"}}, ["'prompt_format'", "chat", "raw"]),
        ({"m": {"model_path": "x", "maxModelLen": 1, "max_model_len": 2}}, ["'m'", "both"]),
        ({"m": 5}, ["'m'", "object"]),
        ({"m/n": {"model_path": "x"}}, ["'m/n'", "letters"]),
        ({"m": {"model_path": "x"}, "default": "n"}, ["'default'", "'n'", "m"]),
    ],
)
def test_a_wrong_file_says_what_is_allowed(document: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(document)
    message = str(caught.value)
    assert all(word in message for word in words), message


def test_a_path_beside_the_file_is_found_and_a_hub_name_stays(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"here": {"model_path": "weights"}, "hub": {"model_path": "org/name"}}))
    registry = load_registry(file)
    assert registry.resolve("here").location == str(tmp_path / "weights")
    assert registry.resolve("here").model_path == "weights"
    assert registry.resolve("hub").location == "org/name"


def test_unreadable_files_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_registry(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="JSON"):
        load_registry(tmp_path / "bad.json")


def test_the_environment_replaces_every_engine(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"m": {"model_path": "x"}}))
    assert load_registry(file).default.engine == "cuda-vllm-async"
    assert load_registry(file, "cuda-vllm").default.engine == "cuda-vllm"


def test_unknown_models_are_told_apart() -> None:
    with pytest.raises(UnknownModel, match="'nope'"):
        parse({"m": {"model_path": "x"}}).resolve("nope")


def test_the_shipped_file_is_valid_and_ready_for_real_models() -> None:
    registry = load_registry(ROOT / "config.json")
    assert registry.default.id == "smollm2-135m"
    assert registry.default.location == str(ROOT / "var" / "models" / "smollm2-135m")
    assert load_registry(ROOT / "config.json", default="demo").default.id == "demo"
    with pytest.raises(ConfigError, match="CY_LLM_MODEL"):
        load_registry(ROOT / "config.json", default="nope")
    assert {"demo", "qwen2.5-0.5b", "qwen2.5-7b"} <= set(registry.models)
