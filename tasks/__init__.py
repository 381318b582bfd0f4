"""The queue. Only here is Celery known. ``celery -A tasks`` finds the application here."""

from typing import TYPE_CHECKING, Any

import click
from celery import Celery, signals

import logs
from settings import Settings
from tasks.training_worker import TrainingStep
from tasks.worker import EngineStep, attach

if TYPE_CHECKING:
    from tasks.runtime import EngineHost
    from tasks.training_worker import Trainers


class EngineCelery(Celery):
    """A Celery application that, in a ``gpu-infer`` worker, holds the engines."""

    #: Set by the worker's engine step.
    host: "EngineHost | None" = None
    #: Set by the training step of a ``gpu-train`` worker.
    trainers: "Trainers | None" = None


app = EngineCelery("tasks")
app.config_from_object("celeryconfig")
attach(app, EngineStep)
attach(app, TrainingStep)
app.user_options["worker"].add(
    click.Option(("--gpu",), help="GPUs this worker may see, e.g. 0 or 0,1 (sets CUDA_VISIBLE_DEVICES).")
)
app.user_options["worker"].add(
    click.Option(("--models",), help="Models to serve, by id; the worker then takes only their requests.")
)


@signals.setup_logging.connect
def _configure_logging(**_: Any) -> None:
    logs.configure(Settings.from_env().log_level)
