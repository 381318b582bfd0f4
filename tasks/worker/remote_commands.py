"""What operators ask workers, and tell them, through Celery: ``celery -A tasks inspect engine``, ``control drain``.

Flower's worker page shows the same as ``inspect engine`` (``EngineStep.info``, ``TrainingStep.info``). Models are
loaded and unloaded through the service (``bin/cy-llm models``): what one worker was told the next would not know.
"""

import logging
import os
import signal
from typing import Any

from celery.worker.control import control_command, inspect_command

log = logging.getLogger(__name__)


@inspect_command()
def engine(state: Any, **_: Any) -> dict[str, Any]:
    """Models, engines and their load; a trainer's job and how far it is."""
    found: dict[str, Any] = {}
    if state.app.host is not None:
        host = state.app.host
        found["models"] = host.models.describe()
        found["engines"] = {name: engine.info().to_dict() for name, engine in host.models.engines().items()}
        found["in_flight"] = host.in_flight
    if state.app.training is not None:
        found["training"] = state.app.training.runner.progress()
    return found


@control_command()
def drain(state: Any, **_: Any) -> dict[str, str]:
    """Take nothing new, finish what runs (``CY_LLM_DRAIN_SECONDS``) or hand it on, and end: as SIGTERM does."""
    log.warning("The worker was told to drain, by remote command")
    os.kill(os.getpid(), signal.SIGTERM)
    return {"ok": "draining"}
