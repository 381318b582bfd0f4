"""One training, from its last whole checkpoint to its end."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engines.training.datasets.load import Dataset
from engines.training.protocol import Channel, Event
from engines.training.spec import HyperParams, TrainingSpec
from engines.training.trainer import checkpoints
from engines.training.trainer.build import make_trainer, read_dataset
from engines.training.trainer.callbacks import Reporter, StopFlag, tokens_seen
from engines.training.trainer.errors import Stopped, is_out_of_memory


def run(spec: TrainingSpec, channel: Channel, stop: StopFlag) -> None:
    """Train and report. Raises ``Stopped`` when told to stop, else whatever went wrong."""
    work_dir = Path(spec.work_dir)
    for name in checkpoints.remove_broken(work_dir):
        channel.send(Event.NOTE, message=f"{name} was cut off while it was written, and is removed")
    dataset = read_dataset(spec)
    if dataset.empty_rows:
        channel.send(Event.NOTE, message=f"{dataset.empty_rows} rows have an empty answer and are left out")
    params = spec.params
    while True:
        try:
            trainer = _train(spec, params, dataset, channel, stop)
            break
        except Exception as error:
            if not is_out_of_memory(error) or params.batch_size == 1:
                raise
            params = halved(params)
        # Behind the handler, so that the failed trainer is held by no traceback.
        _free_memory()
        channel.send(
            Event.NOTE,
            message=f"Out of memory: going on with batchSize {params.batch_size} and "
            f"gradientAccumulationSteps {params.gradient_accumulation_steps}",
        )
    step = int(trainer.state.global_step)
    if step < trainer.state.max_steps:
        channel.send(Event.PAUSED, step=step)
        raise Stopped
    metrics = _final_metrics(trainer)
    result = _save_result(spec, trainer)
    if trainer.is_world_process_zero():
        channel.send(Event.COMPLETED, step=step, metrics=metrics, result=result)


def halved(params: HyperParams) -> HyperParams:
    """Half the batch, twice the accumulation: the same rows for a step of the optimizer."""
    smaller = max(1, params.batch_size // 2)
    factor = -(-params.batch_size // smaller)
    return replace(
        params,
        batch_size=smaller,
        gradient_accumulation_steps=params.gradient_accumulation_steps * factor,
    )


def _train(spec: TrainingSpec, params: HyperParams, dataset: Dataset, channel: Channel, stop: StopFlag) -> Any:
    trainer = make_trainer(spec, params, dataset, Reporter(channel, stop, len(dataset.train)))
    last = checkpoints.latest(Path(spec.work_dir))
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return trainer


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _final_metrics(trainer: Any) -> dict[str, float]:
    """The last loss of the training, and the evaluation's if there is one."""
    found: dict[str, float] = {}
    for entry in trainer.state.log_history:
        for name in ("loss", "eval_loss"):
            if name in entry:
                found[name] = float(entry[name])
    if trainer.eval_dataset is not None:
        found["eval_loss"] = float(trainer.evaluate()["eval_loss"])
    return found


def _save_result(spec: TrainingSpec, trainer: Any) -> dict[str, Any]:
    """Write what was learned: an adapter, a whole model, or both in one model."""
    work_dir = Path(spec.work_dir)
    kind = "model" if spec.lora is None else "adapter"
    folder = work_dir / kind
    trainer.save_model(str(folder))
    result: dict[str, Any] = {"kind": kind, "path": str(folder)}
    tokens = tokens_seen(trainer.state)
    if tokens:
        result["trained_tokens"] = int(tokens)
    if spec.export == "merged" and spec.lora is not None and trainer.is_world_process_zero():
        merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        merged.save_pretrained(work_dir / "merged")
        trainer.processing_class.save_pretrained(work_dir / "merged")
        result["merged"] = str(work_dir / "merged")
    return result
