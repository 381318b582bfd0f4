"""What a trainer tells its runner: one JSON object a line, on its standard output."""

import json
import os
import sys
from typing import Any


class Event:
    """The ``event`` of a line."""

    #: ``total_steps``, ``epochs``, ``samples``, ``step`` (where it starts from).
    STARTED = "started"
    #: ``step``, ``epoch``: where it is; at most one a second.
    STEP = "step"
    #: ``step``, ``epoch`` and what was logged: ``loss``, ``eval_loss``, ``learning_rate``, ``grad_norm``,
    #: ``tokens_per_second``, ``trained_tokens`` (all since the beginning).
    METRICS = "metrics"
    #: ``step``: a checkpoint is whole on disk.
    CHECKPOINT = "checkpoint"
    #: ``message``: something that an operator should know.
    NOTE = "note"
    #: ``step``: stopped as asked; a checkpoint holds this step.
    PAUSED = "paused"
    #: ``step``, ``metrics``, ``result`` (kind and folder of what was made, ``trained_tokens``).
    COMPLETED = "completed"
    #: ``code``, ``message``: what went wrong and what to do.
    FAILED = "failed"


class Channel:
    """The line protocol's writing end. Everything else that prints goes to standard error."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)

    @classmethod
    def take_stdout(cls) -> "Channel":
        """Take standard output for the protocol; libraries that print to it write to standard error from now on."""
        path = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return cls(path)

    def send(self, event: str, **values: Any) -> None:
        self._file.write(json.dumps({"event": event, **values}, ensure_ascii=False) + "\n")
        self._file.flush()
