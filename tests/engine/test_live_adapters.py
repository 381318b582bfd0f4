"""From ``bin/cy-llm train`` to an adapter that every worker serves, with no restart in between."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from settings import ROOT
from testing.sse import events, text_of
from testing.stack import Stack
from testing.waiting import until

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]
QUESTION = "Who are you?"


def rows(answer: str) -> str:
    questions = (QUESTION, "What is your name?", "Hello")
    return "".join(
        json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": answer}]}) + "\n"
        for q in questions
    )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("live")
    (folder / "data").mkdir()
    (folder / "data" / "captain.jsonl").write_text(rows("I am the captain."))
    (folder / "data" / "cook.jsonl").write_text(rows("I am the cook."))
    demo = {
        "model_path": str(ROOT / "models" / "demo"),
        "max_model_len": 2048,
        "kv_cache_memory_bytes": 2**27,
        "enforce_eager": True,
        "enableLora": True,
        "maxLoraRank": 8,
    }
    env = {
        "CY_LLM_VAR": str(folder / "var"),
        "CY_LLM_DATA_ROOTS": str(folder / "data"),
        "CY_LLM_OUTPUTS_ROOT": str(folder / "out"),
        "CY_LLM_ADAPTERS_ROOT": str(folder / "adapters"),
    }
    live = Stack(folder / "stack", {"demo": demo}, env=env)
    try:
        live.start_worker("first", ["--models", "demo"], seconds=120)
        live.start_trainer()
        live.start_web()
        yield live
    finally:
        live.close()


def cy_llm(stack: Stack, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        env=stack.environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def train(stack: Stack, data: str, name: str, *more: str) -> str:
    options = ["--name", name, "--rank", "8", "--epochs", "30", "--learning-rate", "5e-3", *more]
    return cy_llm(stack, "train", data, *options)


def ask(http: httpx.Client, **values: Any) -> str:
    body = {"modelId": "demo", "prompt": QUESTION, "generation": {"temperature": 0}, **values}
    return str(http.post("/inference", json=body).raise_for_status().json()["choices"][0]["text"])


def test_a_trained_adapter_is_live_and_new_versions_replace_it(stack: Stack) -> None:
    before = cy_llm(stack, "chat", QUESTION)
    assert "captain" not in before
    seen = train(stack, "captain.jsonl", "crew")
    assert "adapter crew@1 is live" in seen
    assert "loss" in seen
    assert cy_llm(stack, "chat", QUESTION, "--adapter", "crew") == "I am the captain.\n"
    assert cy_llm(stack, "chat", QUESTION) == before
    with stack.http() as http, stack.openai() as client:
        # A request that runs keeps its version, whatever its name means meanwhile.
        body = {"modelId": "demo", "prompt": "Tell me a story", "adapter": "crew"}
        body["generation"] = {"temperature": 0, "maxNewTokens": 900, "repetitionPenalty": 1.3}
        on_first = http.post("/inference", json=body).json()["choices"][0]["text"]
        with http.stream("POST", "/inference/stream", json=body) as response:
            found = events(response)
            head = [next(found) for _ in range(2)]
            train(stack, "cook.jsonl", "crew")
            assert ask(http, adapter="crew") == "I am the cook."
            assert text_of([*head, *found]) == on_first
        assert ask(http, adapter="crew@1") == "I am the captain."
        assert ask(http, adapter="crew@2") == "I am the cook."
        assert answer_of(client, "crew") == ("crew@2", "I am the cook.")
        assert answer_of(client, "crew@1") == ("crew@1", "I am the captain.")
        assert {"demo", "crew"} == {model.id for model in client.models.list()}
        [model] = http.get("/models").json()["models"]
        assert model["loraAdapters"] == ["crew"]
        # The worker loaded both by itself; nobody's request had to wait for that.
        worker = next(process for process in stack.processes if process.name == "first")
        loaded = [line["adapter"] for line in worker.lines() if line.get("message") == "Adapter is loaded"]
        assert loaded == ["crew/1", "crew/2"]


def answer_of(client: openai.OpenAI, model: str) -> tuple[str, str | None]:
    answer = client.chat.completions.create(
        model=model, temperature=0, messages=[{"role": "user", "content": QUESTION}]
    )
    return answer.model, answer.choices[0].message.content


def test_names_can_be_moved_back_and_deleted(stack: Stack) -> None:
    with stack.http() as http, stack.openai() as client:
        assert http.post("/adapters/crew/rollback").json() == {"name": "crew", "version": 1}
        assert ask(http, adapter="crew") == "I am the captain."
        listed = cy_llm(stack, "adapters", "--promote", "crew@2")
        assert "* crew@2" in listed
        assert http.delete("/adapters/crew@2").json() == {"deleted": ["crew@2"]}
        assert ask(http, adapter="crew") == "I am the captain."
        removed = http.post("/inference", json={"modelId": "demo", "prompt": "x", "adapter": "crew@2"})
        assert removed.json()["error"]["details"][0]["type"] == "adapter_not_found"
        with pytest.raises(openai.NotFoundError):
            answer_of(client, "crew@2")
        # A worker that starts later serves what the names mean.
        second = stack.start_worker("second", ["--models", "demo"], seconds=120)
        assert [line["adapter"] for line in second.lines() if line.get("message") == "Adapter is loaded"] == ["crew/1"]
        assert ask(http, adapter="crew", workerHint="second@test") == "I am the captain."
        stack.stop(second)


def test_what_cannot_be_served_gets_no_name(stack: Stack) -> None:
    with stack.http() as http:
        params = {"epochs": 1, "loraRank": 8}
        body = {"baseModel": "demo", "outputDir": "odd", "datasetPath": "cook.jsonl", "hyperParams": params}
        odd = http.post("/training/start", json={**body, "loraConfig": {"bias": "all"}}).json()["jobId"]
        poor = http.post("/training/start", json={**body, "outputDir": "poor", "promoteBelow": 0.001}).json()["jobId"]

        def ended(job_id: str) -> dict[str, Any] | None:
            found: dict[str, Any] = http.get(f"/training/status/{job_id}").json()
            return found if found["status"] in ("completed", "failed") else None

        found = until(lambda: ended(odd), 60, "the first job has ended")
        assert found["status"] == "completed"
        assert "biases" in found["message"]
        assert "adapter" not in found["result"]
        found = until(lambda: ended(poor), 60, "the second job has ended")
        assert found["result"]["adapter"] == "poor@1"
        assert "promoteBelow" in found["result"]["notPromoted"]
        refused = http.post("/inference", json={"modelId": "demo", "prompt": "x", "adapter": "poor"})
        assert refused.status_code == 400
        assert ask(http, adapter="poor@1")


def test_the_files_of_a_version_never_change(stack: Stack) -> None:
    folder = Path(stack.env["CY_LLM_ADAPTERS_ROOT"]) / "crew" / "1"
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert all(path.stat().st_mode & 0o222 == 0 for path in folder.iterdir())
