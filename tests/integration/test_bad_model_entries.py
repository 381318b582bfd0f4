"""Entries of models that are refused, with what is wrong in them."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from testing.stack import Stack
from tests.conftest import FAKE_MODELS
from tests.integration.live_models import FAKE, http, serving_fakes

__all__ = ["http"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    # None of them leaves anything.
    with serving_fakes(tmp_path_factory.mktemp("entries")) as started:
        yield started


@pytest.mark.parametrize(
    ("body", "code", "named"),
    [
        ({"id": "fake", **FAKE}, 409, "already"),
        ({"id": "a b", **FAKE}, 400, "an id is"),
        ({"id": "x"}, 400, "model_path"),
        ({"id": "x", **FAKE, "colour": "red"}, 400, "'colour'"),
        ({"id": "x", **FAKE, "maxModelLen": "long"}, 400, "'max_model_len'"),
        ({"id": "x", **FAKE, "aliases": ["slow"]}, 400, "another model"),
        ({"id": "x", **FAKE, "engineArgs": {"trust_remote_code": True}}, 400, "never run"),
        ({"id": "x", "modelPath": "/etc"}, 400, "CY_LLM_MODEL_ROOTS"),
        ({"id": "x", "modelPath": "EMPTY"}, 400, "config.json"),
        ({"id": "x", "modelPath": "a/../../x"}, 400, "hub"),
        ({"id": "x", "modelPath": "file:///etc"}, 400, "hub"),
        ({"id": "x", "modelPath": "http://10.0.0.1/"}, 400, "hub"),
        ({"id": "x", "modelPath": "pypi:nothing"}, 400, "smollm2-135m"),
        ({"id": "x", "modelPath": "org/name", "chatTemplate": "/etc/passwd"}, 400, "itself"),
        ({"id": "x", "modelPath": "org/name", "adapterPath": "/etc"}, 400, "CY_LLM_ADAPTERS_ROOT"),
        ({"id": "x", "modelPath": "org/name", "engine": "gpu"}, 400, "known"),
    ],
)
def test_bad_entries_are_named(stack: Stack, http: httpx.Client, body: dict, code: int, named: str) -> None:
    if body.get("modelPath") == "EMPTY":
        body = {**body, "modelPath": str(Path(stack.env["CY_LLM_MODEL_ROOTS"]) / "empty")}
    answer = http.post("/models", json=body)
    assert answer.status_code == code, answer.text
    assert named in answer.text
    assert len(http.get("/models").json()["models"]) == len(FAKE_MODELS["models"])
