"""The Celery application of the workers. ``celery -A tasks`` finds it here."""

import sys
from typing import TYPE_CHECKING, Any

import click
from celery import Celery, signals

import logs
from settings import ROOT, Settings
from tasks.worker.background.bootstep import BackgroundStep
from tasks.worker.bootsteps import EngineStep
from tasks.worker.celery_internals import install_bootstep
from tasks.worker.metrics import MetricsStep

# Its commands are known to the command line too, which asks workers for them.
from tasks.worker.remote_commands import drain, engine  # noqa: F401
from tasks.worker.training.bootstep import TrainingStep

if TYPE_CHECKING:
    from tasks.worker.background.runner import BackgroundRunner
    from tasks.worker.engine_host import EngineHost
    # Its commands are known to the command line too, which asks workers for them.
from tasks.worker.training.bootstep import TrainingContext


class WorkerCelery(Celery):
    """A Celery application that holds what the tasks of its worker work with. Set by the worker's steps."""

    #: Of a ``gpu-infer`` worker.
    host: "EngineHost | None" = None
    #: Of a ``gpu-train`` worker.
    training: "TrainingContext | None" = None
    #: Of a ``cpu-work`` worker.
    background: "BackgroundRunner | None" = None


# The ``celery`` command has this folder on the path while it loads the application, and then removes its first
# mention there. What a worker imports later, and the processes that vLLM spawns, need it: hence a second one.
sys.path.append(str(ROOT))

app = WorkerCelery("tasks")
app.config_from_object("celeryconfig")
for _step in (EngineStep, TrainingStep, BackgroundStep, MetricsStep):
    install_bootstep(app, _step)
app.user_options["worker"].add(
    click.Option(("--gpu",), help="GPUs this worker may see, e.g. 0 or 0,1 (sets CUDA_VISIBLE_DEVICES).")
)
app.user_options["worker"].add(
    click.Option(("--models",), help="Models to serve, by id; the worker then takes only their requests.")
)
app.user_options["worker"].add(
    click.Option(
        ("--swap",),
        is_flag=True,
        help="Load the models of --models when they are asked for; where not all fit at once, they give way by turns.",
    )
)


@signals.setup_logging.connect
def _configure_logging(**_: Any) -> None:
    logs.configure(Settings.from_env_or_exit().log_level)
