"""Real trainings, and what they survive."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from settings import ROOT
from testing.processes import children, name_of
from testing.sse import events
from testing.stack import Process, Stack
from testing.waiting import until
from testing.websocket import receive, send, socket, until_done

pytestmark = pytest.mark.timeout(400)

#: About 200 steps: long enough to be struck in the middle.
PARAMS = {
    "epochs": 50,
    "batchSize": 2,
    "learningRate": 1e-3,
    "saveSteps": 20,
    "loggingSteps": 10,
    "loraRank": 8,
}
STEPS = 200
ROWS = [
    {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"Aye {n}!"}]}
    for n in range(8)
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("training")
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    broken = folder / "broken-model"
    shutil.copytree(ROOT / "models" / "demo", broken)
    spoil(broken)
    demo = {"model_path": str(ROOT / "models" / "demo"), "enableLora": True, "maxLoraRank": 64}
    models = {"default": "demo", "models": {"demo": demo, "broken": {"model_path": str(broken)}}}
    env = {
        "CY_LLM_DATA_ROOTS": str(folder / "data"),
        "CY_LLM_OUTPUTS_ROOT": str(folder / "out"),
        "CY_LLM_ADAPTERS_ROOT": str(folder / "adapters"),
        # Small matrices: a second thread only waits for the other tests.
        "OMP_NUM_THREADS": "1",
    }
    started = Stack(folder / "stack", models, env=env)
    try:
        started.start_web()
        yield started
    finally:
        started.close()


def spoil(model: Path) -> None:
    """Make a weight of a model not a number."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def trainer(stack: Stack) -> Iterator[Process]:
    started = stack.start_trainer()
    yield started
    for process in stack.processes:
        if process.name.startswith("train") and process.popen.poll() is None:
            stack.stop(process)


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    with stack.http() as started:
        yield started


def start(http: httpx.Client, **values: Any) -> str:
    body = {"baseModel": "demo", "outputDir": "mine", "datasetPath": "train.jsonl", "hyperParams": PARAMS, **values}
    response = http.post("/training/start", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["jobId"])


def status_of(http: httpx.Client, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/training/status/{job_id}").json()
    return found


def wait_for(http: httpx.Client, job_id: str, *states: str, seconds: float = 90) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        found = status_of(http, job_id)
        if found["status"] in ("completed", "failed") and found["status"] not in states:
            raise AssertionError(f"{found}\n{http.get(f'/training/{job_id}/logs').text[-3000:]}")
        return found if found["status"] in states else None

    return until(reached, seconds, f"{job_id} is {' or '.join(states)}")


def wait_for_step(http: httpx.Client, job_id: str, step: int) -> None:
    until(lambda: status_of(http, job_id)["progress"]["currentStep"] >= step, 90, f"{job_id} has come to step {step}")


def losses(http: httpx.Client, job_id: str) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in http.get(f"/training/{job_id}/metrics").json()["metrics"]}


def assert_same_curve(found: dict[int, float], expected: dict[int, float]) -> None:
    """The same steps and losses. A line that was logged behind a pause in its middle averages fewer steps."""
    assert list(found) == list(expected)
    others = [step for step in expected if found[step] != pytest.approx(expected[step], rel=1e-3)]
    assert len(others) <= 1, (found, expected)
    assert STEPS not in others


def trainer_pid(worker: Process) -> int:
    return until(
        lambda: next((pid for pid in children(worker.pid) if "engines.training.trainer" in name_of(pid)), None),
        30,
        "a trainer runs",
    )


def has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return True
    return state == "Z"


@pytest.fixture(scope="module")
def reference(stack: Stack) -> dict[int, float]:
    """The loss curve of a training that nothing disturbed; the other tests run the same."""
    worker = stack.start_trainer()
    with stack.http() as http:
        job_id = start(http)
        # Followed live, resumed by id in the middle, to the end.
        with http.stream("GET", f"/training/{job_id}/events") as response:
            head = list(islice((event for event in events(response) if event.id), 3))
        with http.stream("GET", f"/training/{job_id}/events", headers={"Last-Event-ID": head[-1].id}) as response:
            seen = [*head, *events(response)]
        assert seen[-1].data == "[DONE]"
        ids = [int(event.id) for event in seen if event.id]
        assert ids == sorted(set(ids))
        assert [event.json()["status"] for event in seen if event.name == "status"] == [
            "queued",
            "running",
            "completed",
        ]
        found = status_of(http, job_id)
        assert found["status"] == "completed"
        assert found["progress"]["currentStep"] == found["progress"]["totalSteps"] == STEPS
        assert found["result"]["adapter"] == "mine@1"
        assert "train_runtime" in http.get(f"/training/{job_id}/logs").text
        curve = losses(http, job_id)
    stack.stop(worker)
    assert list(curve) == [1, *range(10, STEPS + 1, 10)]
    assert curve[STEPS] < curve[1] / 2
    return curve


def test_the_socket_tells_the_same_events(stack: Stack, http: httpx.Client, reference: dict[int, float]) -> None:
    [job] = http.get("/training/list", params={"status": "completed", "limit": 1}).json()["jobs"]
    with http.stream("GET", f"/training/{job['jobId']}/events") as response:
        seen = [event for event in events(response) if event.name]
    with socket(stack) as ws:
        assert receive(ws)["type"] == "ready"
        send(ws, "watch", jobId=job["jobId"], lastEventId=seen[1].id)
        frames = until_done(ws)
        send(ws, "watch", jobId="job-nothing")
        assert receive(ws)["status"] == 404
        send(ws, "watch", jobId=job["jobId"], lastEventId="x")
        assert receive(ws)["status"] == 400
    assert frames[-1]["jobId"] == job["jobId"]
    seen = [{**event.json(), "type": "job", "event": event.name, "eventId": event.id} for event in seen[2:]]
    assert frames[:-1] == seen


@pytest.mark.full
def test_a_pause_changes_nothing_of_the_result(
    stack: Stack, http: httpx.Client, reference: dict[int, float], trainer: Process
) -> None:
    job_id = start(http)
    wait_for_step(http, job_id, 30)
    refused = http.post(f"/training/resume/{job_id}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "TRAINING_JOB_RUNNING")
    assert http.post(f"/training/pause/{job_id}").status_code == 200
    paused = wait_for(http, job_id, "paused")
    step = paused["progress"]["currentStep"]
    assert 30 <= step < STEPS
    assert paused["message"] == "Paused; a checkpoint holds this step"
    assert http.post(f"/training/resume/{job_id}").status_code == 200
    done = wait_for(http, job_id, "completed")
    assert done["restarts"] == 0
    assert_same_curve(losses(http, job_id), reference)


@pytest.mark.full
def test_a_job_survives_its_trainer_its_worker_and_redis(
    stack: Stack, http: httpx.Client, reference: dict[int, float], trainer: Process
) -> None:
    job_id = start(http)
    wait_for_step(http, job_id, 50)
    os.kill(trainer_pid(trainer), signal.SIGKILL)
    wait_for_step(http, job_id, 100)
    # A host that reboots: worker and trainer are gone, the disk is kept; and the queue is lost.
    pid = trainer_pid(trainer)
    trainer.signal(signal.SIGKILL)
    trainer.wait(10)
    until(lambda: has_ended(pid), 5, "the trainer has died with its worker")
    stack.client.flushall()
    stack.start_trainer("train-2")
    done = wait_for(http, job_id, "completed")
    assert done["restarts"] == 2
    assert_same_curve(losses(http, job_id), reference)
    notes = [event.json()["message"] for event in _notes(http, job_id)]
    assert "The trainer ended without a word (signal 9); it is started again" in notes


def _notes(http: httpx.Client, job_id: str) -> list[Any]:
    with http.stream("GET", f"/training/{job_id}/events") as response:
        return [event for event in events(response) if event.name == "note"]


@pytest.mark.full
def test_a_stopped_worker_hands_its_job_on(
    stack: Stack, http: httpx.Client, reference: dict[int, float], trainer: Process
) -> None:
    job_id = start(http)
    wait_for_step(http, job_id, 30)
    assert stack.stop(trainer) == 0
    waiting = status_of(http, job_id)
    assert (waiting["status"], waiting["restarts"]) == ("queued", 0)
    stack.start_trainer("train-2")
    done = wait_for(http, job_id, "completed")
    assert_same_curve(losses(http, job_id), reference)
    assert done["restarts"] == 0


@pytest.mark.full
def test_a_cancel_stops_the_process(stack: Stack, http: httpx.Client, trainer: Process) -> None:
    job_id = start(http)
    pid = trainer_pid(trainer)
    waiting = start(http)
    wait_for_step(http, job_id, 1)
    started = time.monotonic()
    assert http.post(f"/training/cancel/{job_id}").json()["status"] == "cancelled"
    assert time.monotonic() - started < 10
    assert has_ended(pid)
    assert http.post(f"/training/cancel/{waiting}").json()["status"] == "cancelled"
    # The worker goes on with what comes next; nothing later says that the job is complete.
    params = {**PARAMS, "epochs": 1}
    wait_for(http, start(http, hyperParams=params, outputDir="after"), "completed")
    assert status_of(http, job_id)["status"] == status_of(http, waiting)["status"] == "cancelled"
    assert [row["name"] for row in http.get("/adapters").json()["adapters"] if row["jobId"] == job_id] == []


@pytest.mark.full
def test_what_cannot_go_on_says_why(stack: Stack, http: httpx.Client) -> None:
    data = stack.folder.parent / "data"
    shutil.copy(data / "train.jsonl", data / "deleted.jsonl")
    deleted = start(http, datasetPath="deleted.jsonl")
    (data / "deleted.jsonl").unlink()
    broken = start(http, baseModel="broken", outputDir="spoiled")
    worker = stack.start_trainer()
    found = wait_for(http, deleted, "failed")
    assert found["error"] == {
        "code": "dataset",
        "message": "The dataset cannot be used any more: the dataset does not exist any more",
    }
    found = wait_for(http, broken, "failed")
    assert found["error"]["code"] == "nan_loss"
    assert "lower learningRate" in found["error"]["message"]
    stack.stop(worker)


@pytest.mark.full
def test_a_trainer_that_keeps_dying_is_given_up(stack: Stack, http: httpx.Client, trainer: Process) -> None:
    job_id = start(http, maxRestarts=1)
    for _ in range(2):
        pid = trainer_pid(trainer)
        os.kill(pid, signal.SIGKILL)
        until(lambda started=pid: has_ended(started), 10, "it is dead")  # type: ignore[misc]
    found = wait_for(http, job_id, "failed")
    assert found["error"]["code"] == "restarts"
    assert "maxRestarts is 1" in found["message"]


@pytest.mark.full
def test_an_adapter_that_cannot_be_stored_is_not_lost(stack: Stack, http: httpx.Client, trainer: Process) -> None:
    drafts = Path(stack.env["CY_LLM_ADAPTERS_ROOT"]) / ".drafts"
    drafts.parent.mkdir(exist_ok=True)
    shutil.rmtree(drafts, ignore_errors=True)
    drafts.write_text("a file where a folder must be")
    job_id = start(http, outputDir="stored", hyperParams={**PARAMS, "epochs": 1})
    found = wait_for(http, job_id, "failed")
    assert found["error"]["code"] == "runner"
    drafts.unlink()
    # All steps are done: what is left is to store it.
    assert http.post(f"/training/resume/{job_id}").status_code == 200
    done = wait_for(http, job_id, "completed")
    assert done["result"]["adapter"] == "stored@1"


def test_queued_ids_are_all_that_the_broker_sees(stack: Stack, http: httpx.Client) -> None:
    job_id = start(http)
    messages = b"".join(stack.client.lrange("gpu-train\x06\x169", 0, -1) + stack.client.lrange("gpu-train", 0, -1))
    assert job_id.encode() in messages
    assert b"train.jsonl" not in messages
    http.post(f"/training/cancel/{job_id}")
