"""The check of a data set, in its child process: bounds, words, and a cost that grows as the file does."""

import json
import os
import resource
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from engines.training.datasets.check import check
from engines.training.datasets.check_messages import CheckRequest, CheckResult
from engines.training.datasets.formats import Sample
from engines.training.datasets.lengths import TokenCounter
from engines.training.spec import HyperParams
from services.errors import CheckBusy, InvalidRequest
from services.training.dataset_check import DatasetChecker
from settings import ROOT, Settings
from store.redis import keys
from tasks.broker.dataset_checks import answer_next, run_check
from testing.waiting import until

MODEL = str(ROOT / "models" / "demo")
LONG = {"text": "word " * 20}
ROW = {"prompt": "Who are you?", "completion": "A captain."}


def jsonl(folder: Path, rows: int, row: Any = ROW) -> Path:
    path = folder / "data.jsonl"
    path.write_text((json.dumps(row) + "\n") * rows)
    return path


#: Asked only where this host has no tokenizer.
NO_REDIS: Any = None


def run(path: Path, **settings: Any) -> Any:
    checker = DatasetChecker(Settings(**settings), NO_REDIS)
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


def test_the_work_is_done_in_another_process(tmp_path: Path) -> None:
    """In a thread of the front door the same file held up every stream for seconds."""
    path = jsonl(tmp_path, 30_000)
    here, there = time.process_time(), children_time()
    run(path)
    here, there = time.process_time() - here, children_time() - there
    assert there > 0
    assert here < there / 3


def children_time() -> float:
    """CPU seconds of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_no_more_than_a_few_run_at_once(tmp_path: Path) -> None:
    checker = DatasetChecker(Settings(), NO_REDIS, at_once=1, turn_seconds=0.05)
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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache of another host, with the demo model's tokenizer as ``acme/demo``."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--acme--demo" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "models--acme--demo" / "refs").mkdir()
    (cache / "models--acme--demo" / "refs" / "main").write_text("abc")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (Path(MODEL) / name).exists():
            shutil.copy(Path(MODEL) / name, snapshot)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    return cache


def check_of_hub_model(path: Path, client: redis.Redis, **settings: Any) -> Any:
    checker = DatasetChecker(Settings(**settings), client)
    return checker.require_usable(path, "acme/demo", "sft", "", "refuse", HyperParams(max_seq_length=8))


def test_the_hubs_files_on_this_host_are_enough(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, redis_client: redis.Redis
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    with pytest.raises(InvalidRequest, match="longer than maxSeqLength"):
        check_of_hub_model(jsonl(tmp_path, 3, LONG), redis_client)


def test_without_tokenizer_and_worker_lengths_are_left_to_the_trainer(
    tmp_path: Path, hub: Path, redis_client: redis.Redis
) -> None:
    found = check_of_hub_model(jsonl(tmp_path, 3, LONG), redis_client)
    assert (found.counted, found.rows) == (False, 3)


def test_a_training_worker_that_has_it_checks(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, redis_client: redis.Redis
) -> None:
    def check_there(request: CheckRequest, seconds: float) -> CheckResult:
        # The worker's host has the files that the asker's has not.
        with monkeypatch.context() as there:
            there.setenv("HF_HUB_CACHE", str(hub))
            return run_check(request, seconds)

    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            answer_next(redis_client, check_there)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        until(lambda: redis_client.exists(keys.checkers()), 10, "a worker listens")
        with pytest.raises(InvalidRequest, match="3 of 3 rows are longer than maxSeqLength"):
            check_of_hub_model(jsonl(tmp_path, 3, LONG), redis_client)
        assert check_of_hub_model(jsonl(tmp_path, 3, {"text": "Aye"}), redis_client).counted
    finally:
        ended.set()
        worker.join(10)


def test_a_worker_that_is_lost_leaves_a_refusal(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, redis_client: redis.Redis
) -> None:
    monkeypatch.setattr("tasks.broker.dataset_checks._LISTENING_SECONDS", 1)
    redis_client.set(keys.checkers(), 1)
    with pytest.raises(CheckBusy) as refused:
        check_of_hub_model(jsonl(tmp_path, 1, LONG), redis_client, dataset_check_seconds=8)
    assert refused.value.retry_after
    assert redis_client.llen(keys.checks()) == 0
