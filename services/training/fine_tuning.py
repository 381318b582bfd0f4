"""Fine-tunings as OpenAI's clients ask for them: names, and the values that they leave to the server."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

from engines.training.spec import HyperParams, Method

#: How ids of jobs begin that OpenAI's clients made.
JOB_PREFIX = "ftjob-"
#: The folder of such jobs, inside the outputs root.
OUTPUT_DIR = "fine-tuning"
#: Checkpoints of a job that can be asked: OpenAI's number.
CHECKPOINTS = 3
#: OpenAI's words for what is learned.
METHODS = {"supervised": Method.SFT, "dpo": Method.DPO}
SUFFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: What a multiplier multiplies. LoRA learns at about ten times the rate that suits all weights; 1e-6 is trl's for DPO.
_BASE_RATES = {Method.SFT: 2e-4, Method.DPO: 1e-5}
#: Epochs by the number of rows, as in OpenAI's cookbook ("Data preparation and analysis for chat model fine-tuning").
_EPOCHS, _MAX_EPOCHS, _MIN_SEEN, _MAX_SEEN = 3, 25, 100, 25_000
#: Steps that an epoch should have at least, and the largest batch that is chosen.
_STEPS, _MAX_BATCH = 32, 8
_ADAPTER_NAME_LENGTH = 64


@dataclass(frozen=True)
class AskedHyperParams:
    """As the client gave them; None is ``auto``."""

    n_epochs: int | None = None
    batch_size: int | None = None
    learning_rate_multiplier: float | None = None
    beta: float | None = None


@dataclass(frozen=True)
class FineTuning:
    """What a job keeps of the request that began it."""

    model: str
    training_file: str
    validation_file: str | None
    #: A key of ``METHODS``.
    method: str
    seed: int
    suffix: str = ""
    hyper_params: AskedHyperParams = field(default_factory=AskedHyperParams)
    metadata: dict[str, str] = field(default_factory=dict)

    def adapter_name(self, base: str, job_id: str) -> str:
        """Return a name that no other job's adapter has."""
        mark = f"-{_mark(job_id)}"
        return (self.suffix or base)[: _ADAPTER_NAME_LENGTH - len(mark)] + mark

    def model_name(self, base: str, tenant: str, job_id: str) -> str:
        """Return the name of the model that the job will make."""
        return f"ft:{base}:{tenant}:{self.suffix}:{_mark(job_id)}"

    def settle(self, params: HyperParams, rows: int) -> tuple[HyperParams, dict[str, Any]]:
        """Return what is trained with, and what the client is shown of it. ``rows``: of the training file."""
        asked = self.hyper_params
        epochs, batch = asked.n_epochs or _epochs(rows), asked.batch_size or _batch(rows)
        multiplier = 1.0 if asked.learning_rate_multiplier is None else asked.learning_rate_multiplier
        method = METHODS[self.method]
        shown: dict[str, Any] = {"n_epochs": epochs, "batch_size": batch, "learning_rate_multiplier": multiplier}
        settled = replace(
            params,
            epochs=epochs,
            batch_size=batch,
            learning_rate=_BASE_RATES[method] * multiplier,
            seed=self.seed,
            logging_steps=1,
            each_epoch=True,
        )
        if method == Method.DPO:
            settled = replace(settled, beta=params.beta if asked.beta is None else asked.beta)
            shown["beta"] = settled.beta
        return settled, shown

    def to_options(self, shown: dict[str, Any]) -> dict[str, Any]:
        """Return what is kept with the job. ``shown``: of :meth:`settle`."""
        return {
            "training_file": self.training_file,
            "validation_file": self.validation_file,
            "method": self.method,
            "hyperparameters": shown,
            "seed": self.seed,
            "suffix": self.suffix,
            "metadata": self.metadata,
        }

    def notes(self, job_id: str) -> list[str]:
        """Return what OpenAI's clients read in the events before a job is queued."""
        files = f"training file: {self.training_file}"
        if self.validation_file:
            files += f" and validation file: {self.validation_file}"
        return [f"Created fine-tuning job: {job_id}", f"Validating {files}", "Files validated"]


def _mark(job_id: str) -> str:
    return job_id.rpartition("-")[2][:8]


def _epochs(rows: int) -> int:
    if rows * _EPOCHS < _MIN_SEEN:
        return min(_MAX_EPOCHS, _MIN_SEEN // max(1, rows))
    return max(1, _MAX_SEEN // rows) if rows * _EPOCHS > _MAX_SEEN else _EPOCHS


def _batch(rows: int) -> int:
    return max(1, min(_MAX_BATCH, rows // _STEPS))
