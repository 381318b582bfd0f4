"""``/v1/fine_tuning/jobs`` before any trainer runs: what is taken, what is refused in which words, pages, tenants."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from settings import ROOT
from store.principal import Scope
from store.sql import db
from store.sql.api_keys import ApiKeyStore
from store.sql.jobs import EventKind, JobStatus, JobStore
from store.sql.tables import TrainingEvent
from testing.stack import KEY, Stack

DEMO = {"model_path": str(ROOT / "models" / "demo"), "enableLora": True, "maxLoraRank": 16}
MODELS = {"default": "demo", "models": {"demo": DEMO, "plain": {"model_path": str(ROOT / "models" / "demo")}}}
GOOD = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("tuning")
    env = {"CY_LLM_OUTPUTS_ROOT": str(folder / "out"), "CY_LLM_ADAPTERS_ROOT": str(folder / "adapters")}
    opened = Stack(folder / "stack", MODELS, env=env)
    try:
        opened.start_web()
        yield opened
    finally:
        opened.close()


@pytest.fixture
def sdk(stack: Stack) -> Iterator[openai.OpenAI]:
    with stack.openai() as client:
        yield client


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=stack.openai_base, headers=headers, trust_env=False, timeout=60) as opened:
        yield opened


def upload(sdk: openai.OpenAI, text: str, purpose: Any = "fine-tune") -> str:
    return sdk.files.create(file=("t.jsonl", text.encode()), purpose=purpose).id


def lines(*more: str) -> str:
    return "\n".join([GOOD] * 11 + [*more])


@pytest.fixture
def good(sdk: openai.OpenAI) -> str:
    return upload(sdk, lines())


def post(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/fine_tuning/jobs", json={"model": "demo", **body})


def refusal(response: httpx.Response) -> tuple[int, str | None, str | None]:
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return response.status_code, error["param"], error["code"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (lines('{"messages":[}'), "line 12"),
        (lines('{"messages":[{"role":"user","content":"q"}]}', '{"messages":[]}'), "line 12, messages: "),
        (lines(GOOD.replace("assistant", "robot")), "line 12, messages[1].role"),
        (lines(GOOD.replace('"a"', '""')), "line 12, messages[1].content"),
        ("\n\n", "no row"),
        ("{}", "line 1"),
    ],
)
def test_a_bad_file_is_refused_with_its_lines(http: httpx.Client, sdk: openai.OpenAI, text: str, says: str) -> None:
    answer = post(http, training_file=upload(sdk, text))
    assert refusal(answer) == (400, "training_file", "invalid_training_file")
    assert says in answer.json()["error"]["message"]
    validation = post(http, training_file=upload(sdk, lines()), validation_file=upload(sdk, text))
    assert refusal(validation) == (400, "validation_file", "invalid_validation_file")


def test_every_bad_line_is_named(http: httpx.Client, sdk: openai.OpenAI) -> None:
    bad = '{"messages":[{"role":"user","content":"q"}]}'
    answer = post(http, training_file=upload(sdk, lines(bad, GOOD, bad)))
    message = answer.json()["error"]["message"]
    assert "line 12" in message and "line 14" in message and "line 13" not in message


def test_files_as_people_save_them(http: httpx.Client, sdk: openai.OpenAI) -> None:
    for text in ("\ufeff" + "\r\n".join([GOOD] * 12), "\n".join([GOOD] * 2), GOOD + "\n\n" + GOOD + "\n"):
        answer = post(http, training_file=upload(sdk, text))
        assert (answer.status_code, answer.json().get("status")) == (200, "queued"), answer.text


def test_nulls_are_as_if_left_out(http: httpx.Client, good: str) -> None:
    nulls = dict.fromkeys(
        ("suffix", "validation_file", "seed", "hyperparameters", "method", "integrations", "metadata")
    )
    assert post(http, training_file=good, **nulls).status_code == 200


@pytest.mark.parametrize(
    ("values", "param", "code"),
    [
        ({"suffix": ""}, "suffix", "invalid_value"),
        ({"suffix": "x" * 65}, "suffix", "invalid_value"),
        ({"suffix": "a/b c:ü"}, "suffix", "invalid_value"),
        ({"validation_file": "file-none"}, "validation_file", "not_found"),
        ({"validation_file": "file-" + "0" * 24}, "validation_file", "not_found"),
        ({"training_file": "file-none"}, "training_file", "not_found"),
        ({"training_file": "../../etc/passwd"}, "training_file", "invalid_path"),
        ({"training_file": 7}, "training_file", "invalid_type"),
        ({"model": "plain"}, "model", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"seed": 2**31}, "seed", "invalid_value"),
        ({"metadata": {"k": 1}}, "metadata", "invalid_value"),
        ({"metadata": {"": "x"}}, "metadata", "invalid_value"),
        ({"metadata": {"k": "x" * 513}}, "metadata", "invalid_value"),
        ({"metadata": {"k" * 65: "x"}}, "metadata", "invalid_value"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata", "invalid_value"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations", "invalid_value"),
        ({"method": {"type": "reinforcement"}}, "method.type", "invalid_value"),
        ({"method": {"type": "supervised", "dpo": {"hyperparameters": {}}}}, "method.dpo", "invalid_value"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"n_epochs": "3"}}, "hyperparameters.n_epochs", "invalid_type"),
        ({"hyperparameters": {"batch_size": 257}}, "hyperparameters.batch_size", "invalid_value"),
        ({"hyperparameters": {"beta": 0.1}}, "hyperparameters.beta", "unknown_field"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 0}},
            "hyperparameters.learning_rate_multiplier",
            "invalid_value",
        ),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}},
            "method.dpo.hyperparameters.beta",
            "invalid_value",
        ),
        (
            {
                "hyperparameters": {"n_epochs": 1},
                "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
            },
            "hyperparameters",
            "invalid_value",
        ),
        ({"hyperparameters": {"n_epochs": 1}, "method": {"type": "dpo"}}, "hyperparameters", "invalid_value"),
        ({"training_file": None}, "training_file", "invalid_type"),
    ],
)
def test_what_is_refused(http: httpx.Client, good: str, values: dict[str, Any], param: str, code: str) -> None:
    answer = post(http, **{"training_file": good, **values})
    assert refusal(answer) == (400, param, code), answer.text


def test_an_unknown_model_and_a_file_for_something_else(http: httpx.Client, sdk: openai.OpenAI, good: str) -> None:
    assert refusal(post(http, training_file=good, model="nope")) == (404, "model", "model_not_found")
    answer = post(http, training_file=upload(sdk, lines(), "batch"))
    assert refusal(answer) == (400, "training_file", "invalid_value")
    assert "'batch'" in answer.json()["error"]["message"]
    # Rows of another method.
    dpo = post(http, training_file=good, method={"type": "dpo"})
    assert refusal(dpo) == (400, "training_file", "invalid_training_file")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 0.5}, None),
        (
            {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"},
            {"n_epochs": 9, "batch_size": 1, "learning_rate_multiplier": 1.0},
        ),
        ({}, {"n_epochs": 9, "batch_size": 1, "learning_rate_multiplier": 1.0}),
        (None, {"n_epochs": 9, "batch_size": 1, "learning_rate_multiplier": 1.0}),
    ],
)
def test_hyper_parameters_shown_and_used(
    http: httpx.Client, stack: Stack, good: str, given: dict[str, Any] | None, shown: dict[str, Any] | None
) -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": given}}
    for way in ({"hyperparameters": given}, {"method": method}, {"method": method, "hyperparameters": given}):
        job = post(http, training_file=good, seed=5, **way).json()
        assert job["hyperparameters"] == (shown or given), job
        assert job["method"] == {"type": "supervised", "supervised": {"hyperparameters": shown or given}}
        used = JobStore(db.sessions(db.connect(stack.database_url))).load(job["id"])
        assert used is not None
        params = used.spec["params"]
        values = shown or given or {}
        assert (params["epochs"], params["batch_size"], params["seed"]) == (values["n_epochs"], values["batch_size"], 5)
        assert params["learning_rate"] == pytest.approx(2e-4 * values["learning_rate_multiplier"])
        assert used.spec["lora"]["r"] == 16


def test_epochs_and_batches_that_are_chosen(http: httpx.Client, sdk: openai.OpenAI) -> None:
    for count, chosen in ((1, (25, 1)), (4, (25, 1)), (33, (3, 1)), (40, (3, 1)), (100, (3, 3)), (400, (3, 8))):
        job = post(http, training_file=upload(sdk, "\n".join([GOOD] * count))).json()
        values = job["hyperparameters"]
        assert (values["n_epochs"], values["batch_size"]) == chosen, count


def test_the_file_may_go_once_the_job_is_there(stack: Stack, sdk: openai.OpenAI, good: str) -> None:
    job = sdk.fine_tuning.jobs.create(model="demo", training_file=good)
    sdk.files.delete(good)
    kept = JobStore(db.sessions(db.connect(stack.database_url))).load(job.id)
    assert kept is not None
    assert Path(kept.spec["dataset"]).read_text() == lines()
    assert sdk.fine_tuning.jobs.retrieve(job.id).training_file == good
    # And its copy with it, when it has ended.
    sdk.fine_tuning.jobs.cancel(job.id)
    assert not Path(kept.spec["dataset"]).exists()


def test_pages_metadata_and_states(sdk: openai.OpenAI, http: httpx.Client, good: str) -> None:
    mark = os.urandom(4).hex()
    made = [
        sdk.fine_tuning.jobs.create(model="demo", training_file=good, metadata={"run": mark, "n": str(n)}).id
        for n in range(3)
    ]
    query = {"metadata[run]": mark}
    found = list(sdk.fine_tuning.jobs.list(limit=1, extra_query=query))
    assert [job.id for job in found] == made[::-1]
    first = http.get("/fine_tuning/jobs", params={**query, "limit": 2}).json()
    assert first["has_more"] and [job["id"] for job in first["data"]] == made[:0:-1]
    last = http.get("/fine_tuning/jobs", params={**query, "limit": 2, "after": first["data"][-1]["id"]}).json()
    assert not last["has_more"] and [job["id"] for job in last["data"]] == made[:1]
    one = http.get("/fine_tuning/jobs", params={**query, "metadata[n]": "1"}).json()
    assert [job["id"] for job in one["data"]] == [made[1]]
    assert not http.get("/fine_tuning/jobs", params={"metadata[n]": "9", **query}).json()["data"]
    without = http.get("/fine_tuning/jobs", params={"metadata": "null", "limit": 1000}).json()["data"]
    assert not {job["id"] for job in without} & set(made)
    assert found[0].metadata == {"run": mark, "n": "2"}
    for query_text, param in (
        ("limit=0", "limit"),
        ("after=ftjob-x", "after"),
        ("metadata[]=x", "metadata"),
        ("metadata[k=x", "metadata"),
    ):
        assert refusal(http.get(f"/fine_tuning/jobs?{query_text}"))[:2] == (400, param)

    job_id = made[0]
    assert sdk.fine_tuning.jobs.pause(job_id).to_dict()["status"] == "paused"
    assert sdk.fine_tuning.jobs.resume(job_id).status == "queued"
    assert sdk.fine_tuning.jobs.cancel(job_id).status == "cancelled"
    assert sdk.fine_tuning.jobs.cancel(job_id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled cannot be paused"):
        sdk.fine_tuning.jobs.pause(job_id)


def test_a_file_that_turns_out_wrong_is_blamed(stack: Stack, sdk: openai.OpenAI, good: str) -> None:
    job_id = sdk.fine_tuning.jobs.create(model="demo", training_file=good).id
    jobs = JobStore(db.sessions(db.connect(stack.database_url)))
    lease = jobs.claim(job_id, "r")
    assert lease is not None
    jobs.finish(lease, JobStatus.FAILED, "Line 3 is empty", error_code="dataset")
    error = sdk.fine_tuning.jobs.retrieve(job_id).error
    assert error is not None
    assert (error.code, error.message, error.param) == ("invalid_training_file", "Line 3 is empty", "training_file")


def test_events_in_pages_with_a_failed_job(stack: Stack, sdk: openai.OpenAI, http: httpx.Client, good: str) -> None:
    job_id = sdk.fine_tuning.jobs.create(model="demo", training_file=good).id
    sessions = db.sessions(db.connect(stack.database_url))
    jobs = JobStore(sessions)
    lease = jobs.claim(job_id, "r")
    assert lease is not None
    jobs.mark_started(lease, 0, 4, 11)
    jobs.add_event(lease, EventKind.METRICS, 1, {"loss": 1.5, "token_accuracy": 0.5})
    jobs.add_event(lease, EventKind.METRICS, 1, {"eval_loss": 1.25, "eval_token_accuracy": 0.25})
    jobs.finish(lease, JobStatus.FAILED, "The disk is full", error_code="output")
    job = sdk.fine_tuning.jobs.retrieve(job_id)
    assert job.status == "failed" and job.error is not None and job.finished_at is not None
    assert (job.error.code, job.error.message, job.error.param) == ("output", "The disk is full", None)
    found = list(sdk.fine_tuning.jobs.list_events(job_id, limit=2))
    assert [event.message for event in found] == [
        "The disk is full",
        "Step 1/4: validation loss=1.25, full validation loss=1.25",
        "Step 1/4: training loss=1.5",
        "Training goes on at step 0 of 4",
        "Fine-tuning job started",
        "Job is queued",
        "Files validated",
        f"Validating training file: {good}",
        f"Created fine-tuning job: {job_id}",
    ]
    assert [event.level for event in found][:2] == ["error", "info"]
    assert found[2].data == {"step": 1, "total_steps": 4, "train_loss": 1.5, "train_mean_token_accuracy": 0.5}
    assert len({event.id for event in found}) == 9
    for after in ("x", "ftevent-", "ftevent-x", "ftckpt_1"):
        assert refusal(http.get(f"/fine_tuning/jobs/{job_id}/events?after={after}"))[:2] == (400, "after")
    with sessions() as session:
        assert session.query(TrainingEvent).filter_by(job_id=job_id).count() == 9
    assert http.get(f"/fine_tuning/jobs/{job_id}/checkpoints").json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


def test_another_tenant_and_another_scope(stack: Stack, sdk: openai.OpenAI, good: str) -> None:
    job = sdk.fine_tuning.jobs.create(model="demo", training_file=good)
    with db.connect(stack.database_url).connect() as connection:
        keys = ApiKeyStore(db.sessions(connection.engine))
        stranger = keys.add(os.urandom(4).hex(), [Scope.OPENAI, Scope.TRAINING], tenant="elsewhere")
        narrow = keys.add(os.urandom(4).hex(), [Scope.OPENAI])
    with stack.openai(stranger) as other:
        jobs = other.fine_tuning.jobs
        calls: list[Any] = [
            jobs.retrieve,
            jobs.cancel,
            jobs.pause,
            jobs.resume,
            jobs.list_events,
            jobs.checkpoints.list,
        ]
        for call in calls:
            with pytest.raises(openai.NotFoundError) as raised:
                call(job.id)
            assert raised.value.param == "fine_tuning_job_id"
        assert list(jobs.list()) == []
        with pytest.raises(openai.BadRequestError) as theirs:
            jobs.create(model="demo", training_file=good)
        assert theirs.value.param == "training_file"
    with stack.openai(narrow) as lesser:
        with pytest.raises(openai.PermissionDeniedError, match="training"):
            lesser.fine_tuning.jobs.list()
        with pytest.raises(openai.PermissionDeniedError):
            lesser.models.delete("demo")


def test_the_same_key_begins_one_job(http: httpx.Client, good: str) -> None:
    headers = {"Idempotency-Key": os.urandom(8).hex()}
    body = {"model": "demo", "training_file": good}
    first, second = (http.post("/fine_tuning/jobs", json=body, headers=headers).json() for _ in range(2))
    assert first["id"] == second["id"]
    other = http.post("/fine_tuning/jobs", json={**body, "seed": 1}, headers=headers)
    assert other.status_code == 409
