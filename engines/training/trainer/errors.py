"""Why a training failed, in words that say what to do."""

import errno

import torch

from engines.training.datasets.rows import DatasetError


class TrainingError(Exception):
    """A training that cannot go on. ``code`` is a stable word, the message is for whoever started it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Stopped(Exception):
    """The trainer was told to stop, and has."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch might have fitted."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        phrase in str(error) for phrase in ("out of memory", "can't allocate memory", "not enough memory")
    )


def to_training_error(error: BaseException) -> TrainingError:
    """Turn whatever ended a training into a code and a sentence."""
    match error:
        case TrainingError():
            return error
        case DatasetError():
            return TrainingError("dataset", f"The dataset cannot be used any more: {error}")
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return TrainingError(
                "disk_full", "The disk of the output folder is full; free some space and resume the job"
            )
    # safetensors wraps the errors of the operating system in its own.
    if "No space left on device" in str(error):
        return TrainingError("disk_full", "The disk of the output folder is full; free some space and resume the job")
    if is_out_of_memory(error):
        return TrainingError(
            "out_of_memory",
            "The GPU's memory does not hold one row; lower maxSeqLength or loraRank, or use quantization",
        )
    # Its words may hold paths of the host.
    return TrainingError("trainer_error", f"The trainer failed ({type(error).__name__}); the job's log tells more")
