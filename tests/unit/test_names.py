"""Names that other processes, and operators' commands, rely on."""

from pathlib import Path

from honcho.environ import parse_procfile

from settings import ROOT
from tasks.broker import names
from tasks.celery import app


def test_names_of_queues_and_tasks() -> None:
    assert (names.QUEUE_INFER, names.QUEUE_TRAIN) == ("gpu-infer", "gpu-train")
    assert names.model_queue("m") == "gpu-infer.m"
    app.loader.import_default_modules()
    assert names.TASK_GENERATE in app.tasks


def test_the_procfile_has_the_processes() -> None:
    commands = parse_procfile(Path(ROOT / "Procfile").read_text()).processes
    assert list(commands) == ["web", "grpc", "gpu-infer", "gpu-train", "flower"]
    assert "-Q gpu-infer -P threads -c 128" in commands["gpu-infer"]


def test_celery_takes_json_only_and_acknowledges_early() -> None:
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_acks_late is False
    assert app.conf.worker_disable_prefetch is True
