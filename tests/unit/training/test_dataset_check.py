"""The check of a data set, in its child process: bounds, words, and a cost that grows as the file does."""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engines.training.datasets.check import CheckRequest, check
from engines.training.datasets.formats import Sample
from engines.training.datasets.lengths import TokenCounter
from engines.training.spec import HyperParams
from services.errors import CheckBusy, InvalidRequest
from services.training.dataset_check import DatasetChecker
from settings import ROOT, Settings

MODEL = str(ROOT / "models" / "demo")
ROW = {"prompt": "Who are you?", "completion": "A captain."}


def jsonl(folder: Path, rows: int, row: Any = ROW) -> Path:
    path = folder / "data.jsonl"
    path.write_text((json.dumps(row) + "\n") * rows)
    return path


def run(path: Path, **settings: Any) -> Any:
    checker = DatasetChecker(Settings(**settings))
    return checker.require_usable(path, MODEL, "sft", "", "refuse", HyperParams())


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(InvalidRequest) as refused:
        run(path, **settings)
    (detail,) = refused.value.failure.details
    assert detail.field == "datasetPath"
    return detail.description


def test_what_is_found_comes_back(tmp_path: Path) -> None:
    found = run(jsonl(tmp_path, 5))
    assert (found.rows, found.format, found.counted) == (5, "prompt_completion", True)
    assert found.longest > 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dataset_max_bytes": 100}, "at most 100 are allowed (CY_LLM_DATASET_MAX_BYTES)"),
        ({"dataset_max_rows": 19}, "more than the 19 rows allowed (CY_LLM_DATASET_MAX_ROWS)"),
        ({"dataset_check_seconds": 0.01}, "CY_LLM_DATASET_CHECK_SECONDS"),
    ],
)
def test_a_bound_is_named_with_its_variable(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    path = jsonl(tmp_path, 20)
    run(path)
    assert words in refusal(path, **settings)


def test_memory_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"text": "word " * 1000} for _ in range(60_000)]))
    assert "memory" in refusal(path, dataset_check_memory_bytes=600 * 2**20)


def test_a_file_that_vanished_is_said(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "gone.jsonl")


def test_a_long_conversation_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 turns make 200 samples; each was tokenized whole, which is quadratic."""
    counted: list[Sample] = []
    count = TokenCounter.count
    monkeypatch.setattr(TokenCounter, "count", lambda self, sample: counted.append(sample) or count(self, sample))
    for turns in (50, 200):
        counted.clear()
        pair = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A captain."}]
        path = jsonl(tmp_path, 1, {"messages": pair * turns})
        found = check(CheckRequest(str(path), "sft", "", MODEL, 100_000, "refuse", 0.0))
        assert not found.problems
        assert len(counted) == 1
        assert found.longest > turns * 5


def test_other_threads_run_on_meanwhile(tmp_path: Path) -> None:
    """In a thread of the front door the same file held the interpreter for seconds."""
    path = jsonl(tmp_path, 30_000)
    pauses: list[float] = []
    ended = threading.Event()

    def tick() -> None:
        last = time.monotonic()
        while not ended.wait(0.001):
            now = time.monotonic()
            pauses.append(now - last)
            last = now

    ticker = threading.Thread(target=tick)
    before = {name for name in sys.modules if name.startswith("tokenizers")}
    ticker.start()
    run(path)
    ended.set()
    ticker.join(10)
    # Its median, which no moment of a busy machine changes; the interpreter's own switching takes 5 ms.
    assert len(pauses) > 100
    assert sorted(pauses)[len(pauses) // 2] < 0.05
    assert {name for name in sys.modules if name.startswith("tokenizers")} == before


def test_no_more_than_a_few_run_at_once(tmp_path: Path) -> None:
    checker = DatasetChecker(Settings(), at_once=1, turn_seconds=0.05)
    usable = jsonl(tmp_path, 2)
    # A pipe: its check goes on until this test has written its rows.
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    found: list[Any] = []

    def run(path: Path) -> None:
        found.append(checker.require_usable(path, MODEL, "sft", "", "refuse", HyperParams()))

    held = threading.Thread(target=run, args=(pipe,))
    held.start()
    with pipe.open("w") as rows:
        with pytest.raises(CheckBusy):
            run(usable)
        rows.write(json.dumps(ROW) + "\n")
    held.join(20)
    run(usable)
    assert [each.rows for each in found] == [1, 2]
