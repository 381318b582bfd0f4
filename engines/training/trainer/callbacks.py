"""What the trainer library tells while it trains, passed on; and how it is made to stop."""

import math
import signal
import threading
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from engines.training.protocol import Channel, Event
from engines.training.trainer.checkpoints import mark_complete
from engines.training.trainer.errors import TrainingError

#: At most one line about the position in this time. Seconds.
_STEP_SECONDS = 1.0
#: The library's names of what is logged, and ours.
_METRICS = {
    "loss": "loss",
    "eval_loss": "eval_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "mean_token_accuracy": "token_accuracy",
    "eval_mean_token_accuracy": "eval_token_accuracy",
    "rewards/accuracies": "reward_accuracy",
}


class StopFlag:
    """Set by SIGTERM: train to the end of this step, save, and leave."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def install(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self._event.set())

    @property
    def set(self) -> bool:
        return self._event.is_set()


class Reporter(TrainerCallback):
    """Reports progress and vouches for checkpoints."""

    def __init__(self, channel: Channel, stop: StopFlag, samples: int) -> None:
        self._channel = channel
        self._stop = stop
        self._samples = samples
        self._reported_at = 0.0
        #: When the library counted this run's tokens last, and how many there were; those of the runs before.
        self._tokens = (time.monotonic(), 0.0)
        self._tokens_before = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._tokens, self._tokens_before = (time.monotonic(), 0.0), tokens_seen(state)
        if state.is_world_process_zero:
            self._channel.send(
                Event.STARTED,
                step=state.global_step,
                total_steps=state.max_steps,
                epochs=args.num_train_epochs,
                samples=self._samples,
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._stop.set and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
        now = time.monotonic()
        if state.is_world_process_zero and now - self._reported_at >= _STEP_SECONDS:
            self._reported_at = now
            self._channel.send(Event.STEP, step=state.global_step, epoch=round(state.epoch or 0.0, 4))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        found = {ours: float(logs[name]) for name, ours in _METRICS.items() if logs and name in logs}
        if not {"loss", "eval_loss"} & set(found):
            # The library's closing summary, at whatever step that is.
            return
        for name in ("loss", "eval_loss"):
            if not math.isfinite(found.get(name, 0.0)):
                raise TrainingError(
                    "nan_loss",
                    f"The loss is not a number any more at step {state.global_step}: lower learningRate, "
                    "raise warmupRatio, or look for odd rows in the dataset",
                )
        if "num_tokens" in (logs or {}):
            now, tokens = time.monotonic(), float((logs or {})["num_tokens"])
            if now > self._tokens[0] and tokens > self._tokens[1]:
                found["tokens_per_second"] = round((tokens - self._tokens[1]) / (now - self._tokens[0]), 1)
            self._tokens = (now, tokens)
            # Into what a checkpoint keeps: a run that goes on from it counts on.
            found["trained_tokens"] = state.log_history[-1]["trained_tokens"] = self._tokens_before + tokens
        if state.is_world_process_zero:
            # Not every one of them is a number in JSON.
            found = {name: value for name, value in found.items() if math.isfinite(value)}
            epoch = round(state.epoch or 0.0, 4)
            self._channel.send(Event.METRICS, step=state.global_step, epoch=epoch, **found)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            mark_complete(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")
            self._channel.send(Event.CHECKPOINT, step=state.global_step)


def tokens_seen(state: TrainerState) -> float:
    """Return how many tokens were trained on, those of every epoch and every run, at the last step that was logged.

    The library counts one run's.
    """
    counted = (entry["trained_tokens"] for entry in reversed(state.log_history) if "trained_tokens" in entry)
    return float(next(counted, 0.0))
