"""OpenAI's fine-tuning, by OpenAI's own client, from an upload to a model that answers; real trl, real vLLM."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import Model
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from settings import ROOT
from store.sql import db
from store.sql.adapters import AdapterStore
from testing.stack import KEY, Stack
from testing.waiting import until

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]
QUESTION = "Who are you?"
ENDED = ("succeeded", "failed", "cancelled")


def rows(answer: str, count: int = 12) -> bytes:
    lines = []
    for number in range(count):
        asked = (QUESTION, "What is your name?", "Hello", f"Say {number}")[number % 4]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns}))
    return "\n".join(lines).encode()


def preferences(count: int = 12) -> bytes:
    line = {
        "input": {"messages": [{"role": "user", "content": QUESTION}], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "I am the captain."}],
        "non_preferred_output": [{"role": "assistant", "content": "I am the cook."}],
    }
    return "\n".join([json.dumps(line)] * count).encode()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("tuning")
    demo = {
        "model_path": str(ROOT / "models" / "demo"),
        "max_model_len": 2048,
        "kv_cache_memory_bytes": 2**27,
        "enforce_eager": True,
        "enableLora": True,
        "maxLoraRank": 8,
        "aliases": ["gpt-4o-mini"],
    }
    env = {
        "CY_LLM_VAR": str(folder / "var"),
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


@pytest.fixture
def sdk(stack: Stack) -> Iterator[openai.OpenAI]:
    with stack.openai() as client:
        yield client


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=stack.openai_base, headers=headers, trust_env=False, timeout=60) as opened:
        yield opened


def upload(sdk: openai.OpenAI, data: bytes) -> str:
    return sdk.files.create(file=("train.jsonl", data), purpose="fine-tune").id


def finish(sdk: openai.OpenAI, job_id: str, seconds: float = 240) -> FineTuningJob:
    ended = until(lambda: (job := sdk.fine_tuning.jobs.retrieve(job_id)).status in ENDED and job, seconds, "it ends")
    assert isinstance(ended, FineTuningJob)
    return ended


def ask(sdk: openai.OpenAI, model: str, **more: Any) -> Any:
    turns: Any = [{"role": "user", "content": QUESTION}]
    return sdk.chat.completions.create(model=model, messages=turns, temperature=0, max_tokens=30, **more)


FAST = {"n_epochs": 8, "batch_size": 2, "learning_rate_multiplier": 25}


def test_from_an_upload_to_an_answer(stack: Stack, sdk: openai.OpenAI, http: httpx.Client) -> None:
    training, validation = upload(sdk, rows("I am the captain.")), upload(sdk, rows("I am the captain.", 4))
    job = sdk.fine_tuning.jobs.create(
        model="gpt-4o-mini",
        training_file=training,
        validation_file=validation,
        suffix="captain",
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": FAST}},  # type: ignore[typeddict-item]
        metadata={"team": "deck"},
    )
    assert job.id.startswith("ftjob-") and job.object == "fine_tuning.job"
    assert (job.status, job.model, job.seed, job.organization_id) == ("queued", "demo", 7, "default")
    assert (job.result_files, job.error, job.fine_tuned_model, job.trained_tokens) == ([], None, None, None)
    assert job.hyperparameters.to_dict() == FAST
    assert job.method and job.method.supervised and job.method.supervised.hyperparameters
    assert job.method.supervised.hyperparameters.to_dict() == FAST
    # It has its own copies.
    for file in (training, validation):
        sdk.files.delete(file)
    done = finish(sdk, job.id)
    assert (done.status, done.error) == ("succeeded", None), done
    assert done.finished_at is not None and done.finished_at >= done.created_at
    assert done.trained_tokens and done.trained_tokens > 8 * 12 * 10
    name = done.fine_tuned_model
    assert name == f"ft:demo:default:captain:{job.id.removeprefix('ftjob-')[:8]}"

    # Live at once, by its name, which the answer repeats.
    answer = ask(sdk, name)
    assert (answer.choices[0].message.content, answer.model) == ("I am the captain.", name)
    chunks = list(ask(sdk, name, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "I am the captain."
    assert {chunk.model for chunk in chunks} == {name}
    assert "captain" not in str(ask(sdk, "demo").choices[0].message.content)

    # Checkpoints: of the last three epochs, newest first, each a model.
    checkpoints = list(sdk.fine_tuning.jobs.checkpoints.list(job.id, limit=2))
    assert [each.step_number for each in checkpoints] == [48, 42, 36]
    assert checkpoints[0].fine_tuned_model_checkpoint == f"{name}:ckpt-step-48"
    assert {each.fine_tuning_job_id for each in checkpoints} == {job.id}
    metrics = checkpoints[0].metrics
    assert metrics.step == 48 and metrics.train_loss is not None
    assert metrics.full_valid_loss is not None and metrics.full_valid_loss < 1
    assert ask(sdk, checkpoints[0].fine_tuned_model_checkpoint).choices[0].message.content == "I am the captain."

    # Events, newest first, in pages.
    events = list(sdk.fine_tuning.jobs.list_events(job.id, limit=3))
    assert len({event.id for event in events}) == len(events)
    messages = [event.message for event in reversed(events)]
    assert messages[:5] == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {training} and validation file: {validation}",
        "Files validated",
        "Job is queued",
        "Fine-tuning job started",
    ]
    assert messages[-2:] == [f"New fine-tuned model created: {name}", "The job has successfully completed"]
    assert "Checkpoint created at step 48" in messages
    steps = [event for event in events if event.type == "metrics" and "train_loss" in (event.data or {})]  # type: ignore[operator]
    assert [event.data["step"] for event in reversed(steps)] == list(range(1, 49))  # type: ignore[index]
    assert {event.data["total_steps"] for event in steps} == {48}  # type: ignore[index]

    # The losses as a table.
    [result] = done.result_files
    file = sdk.files.retrieve(result)
    assert (file.purpose, file.filename) == ("fine-tune-results", "step_metrics.csv")
    table = list(csv.DictReader(io.StringIO(sdk.files.content(result).text)))
    assert list(table[0]) == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert [row["step"] for row in table] == [str(step) for step in range(1, 49)]
    assert table[47]["valid_loss"] and not table[46]["valid_loss"]

    # What the SDK forgives, its own types do not.
    FineTuningJob.model_validate_json(http.get(f"/fine_tuning/jobs/{job.id}").content, strict=True)
    for event in http.get(f"/fine_tuning/jobs/{job.id}/events?limit=1000").json()["data"]:
        FineTuningJobEvent.model_validate_json(json.dumps(event), strict=True)
    for each in http.get(f"/fine_tuning/jobs/{job.id}/checkpoints").json()["data"]:
        FineTuningJobCheckpoint.model_validate_json(json.dumps(each), strict=True)
    # The same job at the other face.
    with stack.http() as native:
        shown = native.get(f"/training/status/{job.id}").json()
    assert (shown["status"], shown["progress"]["totalSteps"]) == ("completed", 48)

    # Its models, and their end.
    listed = {model.id: model for model in sdk.models.list()}
    for each in (name, checkpoints[0].fine_tuned_model_checkpoint):
        assert listed[each].to_dict()["parent"] == "demo"
        assert sdk.models.retrieve(each).id == each
        Model.model_validate_json(http.get(f"/models/{each.replace(':', '%3A')}").content, strict=True)
    running = ask(sdk, name, stream=True)
    next(running)
    deleted = sdk.models.delete(name)
    assert (deleted.id, deleted.object, deleted.deleted) == (name, "model", True)
    assert "captain" in "".join(chunk.choices[0].delta.content or "" for chunk in running)
    for gone in (sdk.models.retrieve, sdk.models.delete, lambda gone: ask(sdk, gone)):
        with pytest.raises(openai.NotFoundError) as raised:
            gone(name)
        assert raised.value.code == "model_not_found"
    assert name not in [model.id for model in sdk.models.list()]
    assert sdk.fine_tuning.jobs.retrieve(job.id).fine_tuned_model == name
    # The others stay.
    assert ask(sdk, checkpoints[1].fine_tuned_model_checkpoint).choices[0].message.content == "I am the captain."
    with pytest.raises(openai.PermissionDeniedError):
        sdk.models.delete("demo")


def test_values_that_are_left_to_the_server(sdk: openai.OpenAI) -> None:
    job = sdk.fine_tuning.jobs.create(model="demo", training_file=upload(sdk, rows("Aye.")))
    sdk.fine_tuning.jobs.cancel(job.id)
    assert job.hyperparameters.to_dict() == {"n_epochs": 8, "batch_size": 1, "learning_rate_multiplier": 1.0}
    assert 0 <= job.seed < 2**31
    assert job.to_dict()["user_provided_suffix"] is None


def test_preferences(sdk: openai.OpenAI) -> None:
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "beta": 0.2}}}
    job = sdk.fine_tuning.jobs.create(model="demo", training_file=upload(sdk, preferences()), method=method)
    done = finish(sdk, job.id)
    assert done.status == "succeeded", done
    assert done.method and done.method.dpo and done.method.dpo.hyperparameters
    assert done.method.dpo.hyperparameters.to_dict() == {
        "n_epochs": 2,
        "batch_size": 1,
        "learning_rate_multiplier": 1.0,
        "beta": 0.2,
    }
    assert done.fine_tuned_model is not None
    assert ask(sdk, done.fine_tuned_model).choices[0].message.content


def test_paused_resumed_and_gone_on_from(stack: Stack, sdk: openai.OpenAI) -> None:
    jobs = sdk.fine_tuning.jobs
    slow: Any = {"n_epochs": 50, "batch_size": 1}
    job = jobs.create(model="demo", training_file=upload(sdk, rows("I am the captain.")), hyperparameters=slow)
    until(lambda: any(event.type == "metrics" for event in jobs.list_events(job.id)), 120, "it trains")
    jobs.pause(job.id)
    until(lambda: jobs.retrieve(job.id).to_dict()["status"] == "paused", 60, "it is paused")
    assert jobs.resume(job.id).status == "queued"
    until(lambda: jobs.retrieve(job.id).status == "running", 60, "it goes on")
    assert jobs.cancel(job.id).status == "cancelled"
    ended = jobs.retrieve(job.id)
    assert (ended.fine_tuned_model, ended.error, ended.trained_tokens) == (None, None, None)
    with pytest.raises(openai.BadRequestError, match="cannot be resumed"):
        jobs.resume(job.id)
    # A checkpoint is a model, and a model can be fine-tuned; it may go as soon as the job is there.
    [newest, *_] = jobs.checkpoints.list(job.id)
    quick: Any = {"n_epochs": 1, "batch_size": 4}
    next_job = jobs.create(
        model=newest.fine_tuned_model_checkpoint,
        training_file=upload(sdk, rows("I am the captain.")),
        hyperparameters=quick,
    )
    jobs.pause(next_job.id)
    sdk.models.delete(newest.fine_tuned_model_checkpoint)
    settings = stack.settings
    sessions = db.sessions(db.connect(settings.database_url))
    AdapterStore(sessions, stack.folder.parent / "adapters").purge_deleted(-1)
    until(lambda: jobs.retrieve(next_job.id).to_dict()["status"] in ("paused", *ENDED), 60, "it is paused, or was fast")
    if jobs.retrieve(next_job.id).to_dict()["status"] == "paused":
        jobs.resume(next_job.id)
    done = finish(sdk, next_job.id)
    assert (done.status, done.model) == ("succeeded", "demo"), done


def test_a_pause_changes_nothing_of_what_is_counted(sdk: openai.OpenAI) -> None:
    jobs, params = sdk.fine_tuning.jobs, {"n_epochs": 20, "batch_size": 2}
    file = upload(sdk, rows("I am the captain."))
    plain: Any = jobs.create(model="demo", training_file=file, seed=1, hyperparameters=params)  # type: ignore[arg-type]
    whole = finish(sdk, plain.id)
    paused: Any = jobs.create(model="demo", training_file=file, seed=1, hyperparameters=params)  # type: ignore[arg-type]
    until(lambda: any(event.type == "metrics" for event in jobs.list_events(paused.id)), 120, "it trains")
    jobs.pause(paused.id)
    until(lambda: jobs.retrieve(paused.id).to_dict()["status"] == "paused", 60, "it is paused")
    jobs.resume(paused.id)
    done = finish(sdk, paused.id)
    assert done.trained_tokens == whole.trained_tokens
    tables = [sdk.files.content(job.result_files[0]).text.splitlines() for job in (whole, done)]
    assert len(tables[0]) == len(tables[1]) == 121


def test_jobs_of_the_native_api_are_here_too(stack: Stack, sdk: openai.OpenAI, http: httpx.Client) -> None:
    file = upload(sdk, rows("Aye."))
    with stack.http() as native:
        body = {
            "baseModel": "demo",
            "outputDir": "mine",
            "datasetPath": file,
            "validationPath": file,
            "hyperParams": {"loraRank": 8, "epochs": 1, "evalSteps": 1},
        }
        job_id = native.post("/training/start", json=body).raise_for_status().json()["jobId"]
    done = finish(sdk, job_id)
    assert (done.status, done.fine_tuned_model) == ("succeeded", "mine@1")
    assert ask(sdk, "mine@1").choices[0].message.content
    FineTuningJob.model_validate_json(http.get(f"/fine_tuning/jobs/{job_id}").content, strict=True)
    assert job_id in [job.id for job in sdk.fine_tuning.jobs.list(limit=1)]
    measured = [event.data for event in sdk.fine_tuning.jobs.list_events(job_id) if event.type == "metrics"]
    assert any("full_valid_loss" in (data or {}) for data in measured)  # type: ignore[operator]
