"""The training API before any trainer runs: what is accepted, what is refused, and whose jobs are whose."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from settings import ROOT
from store.principal import Scope
from store.sql import db
from store.sql.api_keys import ApiKeyStore
from store.sql.jobs import JobStore
from testing.stack import Stack

MODELS = {
    "default": "demo",
    "models": {
        "demo": {"model_path": str(ROOT / "models" / "demo"), "enableLora": True, "maxLoraRank": 64},
        "plain": {"model_path": str(ROOT / "models" / "demo")},
    },
}
ROWS = [{"prompt": f"question {number}", "completion": "a longer answer to it"} for number in range(10)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("training")
    for name in ("data", "out", "secret"):
        (folder / name).mkdir()
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "secret" / "key.jsonl").write_text('{"text": "secret"}\n')
    env = {"CY_LLM_DATA_ROOTS": str(folder / "data"), "CY_LLM_OUTPUTS_ROOT": str(folder / "out")}
    opened = Stack(folder / "stack", MODELS, env={**env, "CY_LLM_ADAPTERS_ROOT": str(folder / "adapters")})
    try:
        opened.start_web()
        yield opened
    finally:
        opened.close()


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    with stack.http() as opened:
        yield opened


def body(**values: Any) -> dict[str, Any]:
    return {"baseModel": "demo", "outputDir": "mine", "datasetPath": "train.jsonl", **values}


def details(response: httpx.Response) -> list[dict[str, str]]:
    assert response.status_code == 400, response.text
    found: list[dict[str, str]] = response.json()["error"]["details"]
    return found


def test_a_job_is_queued_listed_and_cancelled_at_once(http: httpx.Client) -> None:
    started = http.post("/training/start", json=body()).json()
    assert set(started) == {"jobId", "status", "message", "createdAt"}
    assert (started["status"], started["message"]) == ("queued", "Training job has been queued")
    job_id = started["jobId"]
    shown = http.get(f"/training/status/{job_id}").json()
    assert shown["status"] == "queued"
    assert set(shown["progress"]) == {"currentEpoch", "currentStep", "totalSteps", "loss", "learningRate"}
    assert shown["adapterName"] == "mine"
    listed = http.get("/training/list", params={"status": "queued", "limit": 1}).json()
    assert [job["jobId"] for job in listed["jobs"]] == [job_id]
    assert (listed["total"], listed["limit"], listed["offset"]) == (1, 1, 0)
    assert http.post(f"/training/cancel/{job_id}").json() == {
        "jobId": job_id,
        "status": "cancelled",
        "message": "Training job has been cancelled",
    }
    assert http.get(f"/training/status/{job_id}").json()["status"] == "cancelled"
    # Once more changes nothing; other wishes are refused with the state.
    assert http.post(f"/training/cancel/{job_id}").status_code == 200
    refused = http.post(f"/training/resume/{job_id}")
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "A job that is cancelled cannot be resumed"


def spec_of(http: httpx.Client, stack: Stack, **values: Any) -> dict[str, Any]:
    """What the trainer would get."""
    job_id = http.post("/training/start", json=body(**values)).json()["jobId"]
    http.post(f"/training/cancel/{job_id}")
    engine = db.connect(stack.database_url)
    job = JobStore(db.sessions(engine)).load(job_id)
    engine.dispose()
    assert job is not None
    return job.spec


def test_lora_config_wins_over_the_lora_hyper_parameters(http: httpx.Client, stack: Stack) -> None:
    params = {"loraRank": 4, "loraAlpha": 5, "loraDropout": 0.1}
    config = {"r": 8, "targetModules": ["q_proj"], "bias": "all"}
    spec = spec_of(http, stack, hyperParams=params, loraConfig=config)
    assert spec["lora"] == {"r": 8, "alpha": 5, "dropout": 0.1, "target_modules": ["q_proj"], "bias": "all"}


def test_every_field_reaches_the_trainer_s_specification(http: httpx.Client, stack: Stack) -> None:
    given = {
        "batchSize": 2,
        "learningRate": 1e-5,
        "epochs": 7,
        "maxSeqLength": 99,
        "saveSteps": 11,
        "evalSteps": 12,
        "loggingSteps": 13,
        "gradientAccumulationSteps": 3,
        "warmupRatio": 0.25,
        "weightDecay": 0.5,
        "lrScheduler": "cosine",
        "seed": 9,
        "evalSplit": 0.2,
        "packing": True,
        "beta": 0.2,
    }
    spec = spec_of(http, stack, hyperParams=given, longRows="drop", export="merged")
    assert list(spec["params"].values()) == [
        given[name]
        for name in (
            "batchSize",
            "learningRate",
            "epochs",
            "maxSeqLength",
            "saveSteps",
            "evalSteps",
            "loggingSteps",
            "gradientAccumulationSteps",
            "warmupRatio",
            "weightDecay",
            "lrScheduler",
            "seed",
            "evalSplit",
            "packing",
            "beta",
        )
    ]
    assert (spec["long_rows"], spec["export"], spec["method"]) == ("drop", "merged", "sft")
    assert spec_of(http, stack)["lora"]["r"] == 64


@pytest.mark.parametrize(
    ("values", "field", "sentence"),
    [
        ({"baseModel": "nobody/model"}, "baseModel", "known: demo, plain"),
        ({"baseModel": None}, "baseModel", "null"),
        ({"more": 1}, "more", "Unknown field"),
        ({"hyperParams": {"batchSize": 0}}, "hyperParams.batchSize", "greater than or equal to 1"),
        ({"hyperParams": {"batchSize": "4"}}, "hyperParams.batchSize", "whole number"),
        ({"hyperParams": {"learningRate": 0}}, "hyperParams.learningRate", "greater than 0"),
        ({"hyperParams": {"loraRank": 128}}, "hyperParams.loraRank", "maxLoraRank 64"),
        ({"loraConfig": {"r": 128}}, "loraConfig.r", "maxLoraRank 64"),
        ({"loraConfig": {"bias": "some"}}, "loraConfig.bias", "none, all, lora_only"),
        ({"hyperParams": {"lrScheduler": "magic"}}, "hyperParams.lrScheduler", "linear"),
        ({"hyperParams": {"evalSplit": 0.01}}, "hyperParams.evalSplit", "leaves none for evaluation"),
        ({"hyperParams": {"maxSeqLength": 8}}, "datasetPath", "10 of 10 rows are longer than maxSeqLength"),
        ({"method": "dpo"}, "datasetPath", "prompt, chosen and rejected"),
        ({"method": "magic"}, "method", "sft, dpo"),
        ({"lora": False, "export": "merged"}, "export", "needs an adapter"),
        ({"lora": False, "quantization": {"use4bit": True}}, "quantization", "cannot be trained whole"),
        ({"adapterName": "a/b"}, "adapterName", "letters, digits"),
        ({"resumeFrom": "nothing"}, "resumeFrom", "must name one of your adapters or an earlier job"),
        ({"datasetPath": "absent.jsonl"}, "datasetPath", "There is no file 'absent.jsonl'"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, values: dict[str, Any], field: str, sentence: str) -> None:
    [detail] = details(http.post("/training/start", json=body(**values)))
    assert detail["field"] == field
    assert sentence in detail["description"]


def test_a_bad_row_is_named_with_its_line(http: httpx.Client, stack: Stack) -> None:
    rows = ['{"prompt": "a", "completion": "b"}', '{"prompt": "a"}', '{"prompt": true, "completion": "b"}']
    (stack.folder.parent / "data" / "bad.jsonl").write_text("\n".join(rows))
    found = details(http.post("/training/start", json=body(datasetPath="bad.jsonl")))
    assert [detail["field"] for detail in found] == ["datasetPath", "datasetPath"]
    assert found[0]["description"].startswith("line 2, completion: the field 'completion' is missing")
    assert found[1]["description"] == "line 3, prompt: must be text, not bool"


#: Ways out of the data folder; ``{secret}`` and ``{data}`` are absolute folders.
_DATASETS = [
    "../secret/key.jsonl",
    "x/../../secret/key.jsonl",
    "./../secret/key.jsonl",
    "../data/../secret/key.jsonl",
    "{secret}/key.jsonl",
    "{data}/../secret/key.jsonl",
    "{data}",
    ".",
    "..",
    "/",
    "//",
    "/etc/passwd",
    "/proc/self/environ",
    "/proc/self/cwd/config.json",
    "/dev/zero",
    "/dev/stdin",
    "link.jsonl",
    "folder-link/key.jsonl",
    "link-to-link.jsonl",
    "device-link",
    "loop.jsonl",
    "socket",
    "fifo.jsonl",
    "subfolder",
    "train.jsonl\0.txt",
    "~/key.jsonl",
    "file:///etc/passwd",
    "a" * 300,
    "....//....//secret/key.jsonl",
    "%2e%2e/secret/key.jsonl",
]


@pytest.mark.parametrize("path", _DATASETS)
def test_no_dataset_outside_the_roots_is_read(http: httpx.Client, stack: Stack, path: str) -> None:
    data, secret = stack.folder.parent / "data", stack.folder.parent / "secret"
    _lay_traps(data, secret)
    response = http.post("/training/start", json=body(datasetPath=path.format(data=data, secret=secret)))
    [detail] = details(response)
    assert detail["field"] == "datasetPath"
    assert detail["type"] in ("invalid_path", "not_found", "invalid_text")
    assert str(secret) not in detail["description"].replace(path.format(data=data, secret=secret), "")


def _lay_traps(data: Path, secret: Path) -> None:
    if (data / "subfolder").exists():
        return
    (data / "subfolder").mkdir()
    (data / "link.jsonl").symlink_to(secret / "key.jsonl")
    (data / "link-to-link.jsonl").symlink_to(data / "link.jsonl")
    (data / "folder-link").symlink_to(secret)
    (data / "device-link").symlink_to("/dev/zero")
    (data / "loop.jsonl").symlink_to(data / "loop.jsonl")
    os.mkfifo(data / "fifo.jsonl")
    with socket.socket(socket.AF_UNIX) as opened:
        here = Path.cwd()
        os.chdir(data)
        try:
            opened.bind("socket")
        finally:
            os.chdir(here)


@pytest.mark.parametrize("path", ["../out2", "/tmp/elsewhere", "/", ".", "..", "x/../../y", "link", "a\0b", "file"])
def test_no_output_outside_its_root(http: httpx.Client, stack: Stack, path: str) -> None:
    out = stack.folder.parent / "out"
    if not (out / "link").is_symlink():
        (out / "link").symlink_to(stack.folder.parent / "secret")
        (out / "file").write_text("")
    [detail] = details(http.post("/training/start", json=body(outputDir=path)))
    assert detail["field"] == "outputDir"
    assert detail["type"] in ("invalid_path", "invalid_text")


def test_absolute_paths_inside_the_roots_are_taken(http: httpx.Client, stack: Stack) -> None:
    folder = stack.folder.parent
    given = body(datasetPath=str(folder / "data" / "train.jsonl"), outputDir=str(folder / "out" / "deep" / "mine"))
    response = http.post("/training/start", json=given)
    assert response.status_code == 200, response.text
    http.post(f"/training/cancel/{response.json()['jobId']}")


def test_jobs_of_another_tenant_do_not_exist(http: httpx.Client, stack: Stack) -> None:
    engine = db.connect(stack.database_url)
    admin = ApiKeyStore(db.sessions(engine))
    keys = {name: admin.add(name, [Scope.TRAINING], tenant) for name, tenant in (("a", "x"), ("b", "y"), ("c", "x"))}
    reader = admin.add("reader", [Scope.INFERENCE])
    engine.dispose()
    job_id = http.post("/training/start", json=body(), headers={"X-API-Key": keys["a"]}).json()["jobId"]
    calls = [
        ("GET", f"status/{job_id}"),
        ("POST", f"cancel/{job_id}"),
        ("POST", f"pause/{job_id}"),
        ("POST", f"resume/{job_id}"),
        ("GET", f"{job_id}/metrics"),
        ("GET", f"{job_id}/events"),
        ("GET", f"{job_id}/logs"),
    ]
    for method, path in calls:
        hidden = http.request(method, f"/training/{path}", headers={"X-API-Key": keys["b"]})
        assert (hidden.status_code, hidden.json()["error"]["code"]) == (404, "TRAINING_JOB_NOT_FOUND")
        assert http.request(method, f"/training/{path}", headers={"X-API-Key": reader}).status_code == 403
    opened = http.get("/training/list", headers={"X-API-Key": keys["b"]}).json()
    assert (opened["jobs"], opened["total"]) == ([], 0)
    assert http.delete("/adapters/x", headers={"X-API-Key": reader}).status_code == 403
    # Keys of one tenant see each other's; an operator sees everything.
    assert http.get(f"/training/status/{job_id}", headers={"X-API-Key": keys["c"]}).status_code == 200
    assert http.post(f"/training/cancel/{job_id}").status_code == 200


@pytest.mark.parametrize(
    ("query", "field"), [({"status": "odd"}, "status"), ({"limit": "-1"}, "limit"), ({"offset": "x"}, "offset")]
)
def test_a_bad_query_is_named(http: httpx.Client, query: dict[str, str], field: str) -> None:
    [detail] = details(http.get("/training/list", params=query))
    assert detail["field"] == field
