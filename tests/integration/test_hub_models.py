"""A base model of the hub that only training workers have: its data sets are checked there, before a job is queued."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from settings import ROOT
from store.redis import keys
from testing.stack import Stack
from testing.waiting import until

MODEL = ROOT / "models" / "demo"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "one two three four five six seven eight nine"}\n' * 4)
    env = {
        "CY_LLM_DATA_ROOTS": str(tmp_path / "data"),
        "CY_LLM_OUTPUTS_ROOT": str(tmp_path / "out"),
        "CY_LLM_TRAINABLE_MODELS": "acme/demo",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(tmp_path / "empty"),
    }
    started = Stack(tmp_path / "stack", {"fake": {"model_path": "none", "engine": "fake"}}, env=env)
    try:
        yield started
    finally:
        started.close()


def cache_with_tokenizer(folder: Path) -> Path:
    snapshot = folder / "models--acme--demo" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "models--acme--demo" / "refs").mkdir()
    (folder / "models--acme--demo" / "refs" / "main").write_text("abc")
    shutil.copy(MODEL / "tokenizer.json", snapshot)
    return folder


def start(stack: Stack, **params: Any) -> httpx.Response:
    body = {"baseModel": "acme/demo", "outputDir": "o", "datasetPath": "train.jsonl", "hyperParams": params}
    with stack.http() as http:
        return http.post("/training/start", json=body)


@pytest.mark.full
def test_a_worker_refuses_what_the_front_door_cannot_count(stack: Stack, tmp_path: Path) -> None:
    stack.start_web()
    # Nobody to ask: accepted as it is, and counted by the trainer.
    assert start(stack, maxSeqLength=8).status_code == 200
    stack.start_trainer(HF_HUB_CACHE=str(cache_with_tokenizer(tmp_path / "hub")))
    until(lambda: stack.client.exists(keys.checkers()), 20, "the training worker takes checks")
    refused = start(stack, maxSeqLength=8)
    assert refused.status_code == 400, refused.text
    [detail] = refused.json()["error"]["details"]
    assert detail["field"] == "datasetPath"
    assert "4 of 4 rows are longer than maxSeqLength (8 tokens)" in detail["description"]
    assert json.loads(start(stack, maxSeqLength=64).text)["jobId"]
