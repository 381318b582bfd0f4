"""What a training leaves for clients: an adapter, checkpoints that can be asked, a table of its losses."""

import csv
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from engines.errors import UnknownModel
from engines.registry import Registry
from engines.training.adapter_files import FILES, BrokenAdapter, inspect_adapter
from store.files.files import FileFacts, FileStore
from store.sql.adapters import AdapterStore, StagedAdapter, reference
from store.sql.file_tables import ClientFile
from store.sql.jobs import EventKind, JobStore
from store.sql.leases import Lease
from store.sql.tables import Adapter, TrainingEvent, TrainingJob
from tasks.worker.lease_renewal import renewed

log = logging.getLogger(__name__)

#: OpenAI's columns of a job's result file, and ours of the same values.
_COLUMNS = {
    "train_loss": "loss",
    "train_accuracy": "token_accuracy",
    "valid_loss": "eval_loss",
    "valid_mean_token_accuracy": "eval_token_accuracy",
}
_RESULTS = "fine-tune-results"

#: Writes more in the transaction that ends a job, and returns the job's ``result``.
Publish = Callable[[Session], dict[str, Any]]


class Publisher:
    """Publishes what jobs made, in the transactions in which their state changes."""

    def __init__(self, jobs: JobStore, adapters: AdapterStore, files: FileStore, registry: Registry) -> None:
        self._jobs = jobs
        self._adapters = adapters
        self._files = files
        self._registry = registry

    @contextmanager
    def result(
        self, lease: Lease, job: TrainingJob, result: dict[str, Any], published: list[Adapter]
    ) -> Iterator[Publish]:
        """Check and copy what a completed job made; what was not published at the block's end is removed.

        ``published`` gets the adapter.
        """
        with renewed(partial(self._jobs.renew, lease)):
            staged = self._stage(job, Path(result["path"]), result) if result["kind"] == "adapter" else None
        table = self._result_file(job) if job.options.get("openai") else None

        def publish(session: Session) -> dict[str, Any]:
            if staged is not None:
                adapter = self._publish(session, staged, job, result)
                published.append(adapter)
                note = f"New fine-tuned model created: {adapter.model_name or reference(adapter)}"
                session.add(TrainingEvent(job_id=job.id, kind=EventKind.NOTE, step=job.step, data={"message": note}))
            if table is not None:
                session.add(table)
                result["result_files"] = [table.id]
            session.flush()
            return {"result": result}

        try:
            yield publish
        except BaseException:
            if staged is not None:
                self._adapters.discard(staged)
            if table is not None:
                self._files.path(table).unlink(missing_ok=True)
            raise

    def checkpoint(self, lease: Lease, job: TrainingJob, step: int) -> None:
        """Write down a checkpoint, and let it be asked where the job wants that. Raises ``LeaseLostError``."""
        wanted = int(job.options.get("checkpoints", 0))
        notes: dict[str, Any] = {}
        staged, metrics = None, {}
        if wanted:
            metrics = dict(self._jobs.metrics(job.id)).get(step, {})
            try:
                with renewed(partial(self._jobs.renew, lease)):
                    staged = self._stage(job, Path(job.spec["work_dir"]) / f"checkpoint-{step}", notes)
            except OSError as error:
                # The training goes on from it all the same.
                notes["not_served"] = f"The checkpoint cannot be copied: {error.strerror}"

        def publish(session: Session) -> dict[str, Any]:
            if staged is None or self._adapters.has_checkpoint(session, job.id, step):
                return notes
            adapter = self._adapters.add(
                session,
                staged,
                job.adapter_name,
                job.options["model"],
                job.id,
                metrics,
                job.tenant,
                f"{job.options['model_name']}:ckpt-step-{step}",
                step,
            )
            self._adapters.keep_checkpoints(session, job.id, wanted)
            return {"model": adapter.model_name}

        try:
            self._jobs.add_event(lease, EventKind.CHECKPOINT, step, {}, publish)
        finally:
            if staged is not None:
                # It is not there any more where it was published.
                self._adapters.discard(staged)

    def _stage(self, job: TrainingJob, folder: Path, notes: dict[str, Any]) -> StagedAdapter | None:
        """Check an adapter and copy it; a sentence in ``notes`` where it cannot be served."""
        try:
            facts = inspect_adapter(folder, self._registry.resolve(job.options["model"]))
            return self._adapters.stage(folder, FILES, facts.rank, facts.checksum)
        except UnknownModel:
            notes["not_served"] = "The adapter is not served: its base model is not in the model file"
        except BrokenAdapter as error:
            notes["not_served"] = f"The adapter cannot be served: {error}"
        return None

    def _publish(self, session: Session, staged: StagedAdapter, job: TrainingJob, result: dict[str, Any]) -> Adapter:
        name, metrics = job.adapter_name, result["metrics"]
        adapter = self._adapters.add(
            session,
            staged,
            name,
            job.options["model"],
            job.id,
            metrics,
            job.tenant,
            job.options.get("model_name", ""),
        )
        result["adapter"] = reference(adapter)
        threshold = job.options.get("promote_below")
        measured = metrics.get("eval_loss", metrics.get("loss"))
        if threshold is None or (measured is not None and measured <= threshold):
            self._adapters.set_alias(session, name, adapter.version, job.tenant)
        else:
            result["not_promoted"] = (
                f"Its loss {measured} is above promoteBelow {threshold}: name '{name}' was not moved"
            )
        return adapter

    def _result_file(self, job: TrainingJob) -> ClientFile | None:
        """Return the table of a job's losses, on disk and not yet in SQL; None where it cannot be written."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", *_COLUMNS])
        for step, values in self._jobs.metrics(job.id):
            writer.writerow([step, *(values.get(ours, "") for ours in _COLUMNS.values())])
        data = text.getvalue().encode()
        try:
            incoming = self._files.folder.begin(len(data))
        except OSError as error:
            _log_no_table(job, error)
            return None
        try:
            incoming.write(data)
            about = FileFacts(job.tenant, job.owner, _RESULTS, "step_metrics.csv", ".csv")
            return self._files.place(incoming, about)
        except OSError as error:
            incoming.discard()
            _log_no_table(job, error)
            return None


def _log_no_table(job: TrainingJob, error: OSError) -> None:
    # The model is worth more than the table, whose numbers are in the events too.
    log.error("The result file cannot be written: %s", error.strerror, extra={"job_id": job.id})
