"""Names that other processes, and operators' commands, rely on."""

from celery.app.utils import find_app

from launcher.serve import procfile
from settings import ROOT
from tasks.broker import names
from tasks.celery import app


def test_names_of_queues_and_tasks() -> None:
    assert (names.QUEUE_INFER, names.QUEUE_TRAIN, names.QUEUE_BACKGROUND) == ("gpu-infer", "gpu-train", "cpu-work")
    assert names.model_queue("m") == "gpu-infer.m"
    assert names.worker_queue("w@h") == "gpu-infer@w@h"
    app.loader.import_default_modules()
    registered = {name for name in app.tasks if not name.startswith("celery.")}
    assert registered == {"inference.generate", "training.train", "background.run"}
    assert registered == {names.TASK_GENERATE, names.TASK_TRAIN, names.TASK_BACKGROUND}


def test_celery_finds_the_application_under_its_old_name() -> None:
    assert find_app("tasks") is app


def test_the_procfile_has_the_processes() -> None:
    commands = procfile(ROOT / "Procfile")
    assert list(commands) == ["web", "grpc", "gpu-infer", "gpu-train", "cpu-work", "flower"]
    assert "-Q gpu-infer -P threads -c 128" in commands["gpu-infer"]


def test_celery_takes_json_only_and_acknowledges_early() -> None:
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_serializer == app.conf.result_serializer == "json"
    assert app.conf.task_acks_late is False
    assert app.conf.worker_disable_prefetch is True
