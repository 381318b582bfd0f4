"""A training job as its trainer process gets it: one JSON file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


class Method:
    """What is learned."""

    #: Supervised fine-tuning: to answer as the rows answer.
    SFT = "sft"
    #: Direct preference optimization: to prefer ``chosen`` over ``rejected``.
    DPO = "dpo"


class LongRows:
    """What becomes of rows longer than ``max_seq_length``."""

    #: The job is not accepted.
    REFUSE = "refuse"
    #: Their end is cut off.
    TRUNCATE = "truncate"
    #: They are left out.
    DROP = "drop"


@dataclass(frozen=True)
class Lora:
    """The adapter's shape, as peft's ``LoraConfig`` names it."""

    r: int = 64
    alpha: int = 16
    dropout: float = 0.05
    #: Names of the linear layers that are adapted; empty means all of the attention and MLP blocks.
    target_modules: tuple[str, ...] = ()
    #: ``none``, ``all`` or ``lora_only``.
    bias: str = "none"


@dataclass(frozen=True)
class Quantization:
    """How the frozen base model is loaded (bitsandbytes; needs an NVIDIA GPU)."""

    use_4bit: bool = True
    compute_dtype: str = "bfloat16"
    quant_type: str = "nf4"


@dataclass(frozen=True)
class HyperParams:
    """Defaults are the interface document's; those it does not name are the trainer library's."""

    batch_size: int = 4
    learning_rate: float = 2e-4
    epochs: float = 3
    #: Tokens.
    max_seq_length: int = 2048
    #: Optimizer steps between checkpoints, evaluations and log lines.
    save_steps: int = 100
    eval_steps: int = 100
    logging_steps: int = 10
    gradient_accumulation_steps: int = 1
    #: Share of all steps in which the learning rate rises.
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    lr_scheduler: str = "linear"
    seed: int = 42
    #: Share of the rows that is kept apart for evaluation.
    eval_split: float = 0.0
    #: Whether short rows share a sequence.
    packing: bool = False
    #: DPO: how strongly to stay near the base model.
    beta: float = 0.1
    #: Checkpoints and evaluations at the end of each epoch instead of every so many steps.
    each_epoch: bool = False


@dataclass(frozen=True)
class TrainingSpec:
    """Everything a trainer process needs; paths are absolute and were checked."""

    job_id: str
    #: Folder or hub name of the base model.
    base_model: str
    dataset: str
    #: Folder of the job's own: checkpoints, log and result. No other job writes there.
    work_dir: str
    method: str = Method.SFT
    #: Row format (``engines.training.datasets.formats``); empty finds out.
    dataset_format: str = ""
    long_rows: str = LongRows.REFUSE
    #: None trains all weights.
    lora: Lora | None = field(default_factory=Lora)
    quantization: Quantization | None = None
    params: HyperParams = field(default_factory=HyperParams)
    #: ``merged`` also writes base and adapter as one model.
    export: str = ""
    #: An adapter folder that training starts from.
    start_adapter: str = ""
    #: A data set of its own for evaluation; empty has none.
    validation: str = ""

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        # A worker of the version before knows neither.
        if not self.validation:
            del found["validation"]
        if not self.params.each_epoch:
            del found["params"]["each_epoch"]
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TrainingSpec":
        """Inverse of :meth:`to_dict`. Raises ``TypeError`` for a key that is not known."""
        data = dict(data)
        lora, quantization = data.pop("lora", None), data.pop("quantization", None)
        params = HyperParams(**data.pop("params", {}))
        if lora is not None:
            lora = Lora(**{**lora, "target_modules": tuple(lora["target_modules"])})
        return cls(
            lora=lora, quantization=Quantization(**quantization) if quantization else None, params=params, **data
        )

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=2), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "TrainingSpec":
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
