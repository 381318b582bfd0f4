"""A fine-tuning as a client asks for it, parsed by its face."""

from dataclasses import dataclass, field
from typing import Any

from engines.training.spec import HyperParams, LongRows, Lora, Method, Quantization
from services.training.fine_tuning import FineTuning


@dataclass(frozen=True)
class TrainingRequest:
    """Names and defaults are the interface document's; what goes beyond it is in ``docs/training.md``."""

    base_model: str
    output_dir: str
    #: A path in the data folders, or the id of a file that was uploaded.
    dataset_path: str
    params: HyperParams
    #: None trains all weights.
    lora: Lora | None
    #: The field that named the rank, for a message.
    rank_field: str = "hyperParams.loraRank"
    quantization: Quantization | None = None
    #: Empty takes the output folder's name.
    adapter_name: str = ""
    method: str = Method.SFT
    #: Empty finds out.
    dataset_format: str = ""
    long_rows: str = LongRows.REFUSE
    export: str = ""
    #: An adapter, or an earlier job, that training starts from.
    resume_from: str = ""
    #: The adapter's name is moved to the new version only with a loss up to this.
    promote_below: float | None = None
    #: None is the system's own limit.
    max_restarts: int | None = None
    #: A data set for evaluation, as ``dataset_path``; empty has none.
    validation_path: str = ""
    #: Where an OpenAI client asked for it.
    fine_tuning: FineTuning | None = None
    #: The whole body: the same idempotency key with another one is a conflict.
    body: dict[str, Any] = field(default_factory=dict, repr=False)
