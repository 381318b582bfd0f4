"""M01: the model that a training is for gives way to another one meanwhile, and comes back with what was trained."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from settings import ROOT
from testing.stack import Stack
from testing.waiting import until
from tests.integration.swap_stack import Asked, loads

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]
QUESTION, ANSWER = "Who are you?", "I am the captain."


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    (tmp_path / "data").mkdir()
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    (tmp_path / "data" / "captain.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 3)
    demo = {"modelPath": str(ROOT / "models" / "demo"), "enforceEager": True, "kvCacheMemoryBytes": 2**26}
    models = {"a": {**demo, "enableLora": True, "maxLoraRank": 8}, "b": demo}
    env = {
        "CY_LLM_VAR": str(tmp_path / "var"),
        "CY_LLM_DATA_ROOTS": str(tmp_path / "data"),
        "CY_LLM_OUTPUTS_ROOT": str(tmp_path / "out"),
        "CY_LLM_ADAPTERS_ROOT": str(tmp_path / "adapters"),
        "CY_LLM_SWAP_MIN_STAY_SECONDS": "1",
        "CY_LLM_SWAP_MAX_LOADED": "1",
    }
    opened = Stack(tmp_path / "stack", {"default": "a", "models": models}, env=env)
    try:
        opened.start_worker("first", ["--models", "a,b", "--swap"], seconds=180)
        opened.start_trainer()
        opened.start_web()
        yield opened
    finally:
        opened.close()


def test_a_training_on_a_model_that_gives_way(stack: Stack) -> None:
    params = {"epochs": 60, "loraRank": 8, "learningRate": 5e-3}
    body = {"baseModel": "a", "outputDir": "crew", "datasetPath": "captain.jsonl", "hyperParams": params}
    with stack.http() as http:
        job = http.post("/training/start", json=body).raise_for_status().json()["jobId"]

        def shown() -> dict[str, Any]:
            found: dict[str, Any] = http.get(f"/training/status/{job}").json()
            return found

        until(lambda: shown()["status"] == "running", 120, "the training runs")
        # By turns, for as long as it trains: each of them is loaded beside it.
        for model in itertools.cycle("ba"):
            assert Asked(stack, model).result(240).status_code == 200
            if shown()["status"] != "running":
                break
        assert shown()["status"] == "completed", shown()
        assert loads(stack, "b") >= 1
        if loads(stack, "a") == 1:
            assert Asked(stack, "b").result(240).status_code == 200
        assert answer(http, "crew") == ANSWER
        # Away and back once more: what was trained comes with its model.
        assert Asked(stack, "b").result(240).status_code == 200
        before = loads(stack, "a")
        assert answer(http, "crew@1") == ANSWER
        assert loads(stack, "a") == before + 1


def answer(http: httpx.Client, adapter: str) -> str:
    body = {"modelId": "a", "prompt": QUESTION, "adapter": adapter, "generation": {"temperature": 0}}
    return str(http.post("/inference", json=body).raise_for_status().json()["choices"][0]["text"])
