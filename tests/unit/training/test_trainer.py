"""What the trainer libraries are given, and how the trainer judges what went wrong."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.training.datasets.load import Dataset
from engines.training.datasets.rows import whole
from engines.training.spec import (
    HyperParams,
    LongRows,
    Lora,
    Method,
    Quantization,
    TrainingSpec,
)

# The libraries warn of their own future when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")
SPEC = TrainingSpec("job-1", "base", "/data/x.jsonl", "/out/job-1")


def arguments(spec: TrainingSpec = SPEC, evaluates: bool = False, **params: Any) -> Any:
    from engines.training.trainer.build import arguments as build

    return build(spec, replace(spec.params, **params), evaluates)


@pytest.mark.parametrize(
    ("param", "value", "name"),
    [
        ("batch_size", 7, "per_device_train_batch_size"),
        ("learning_rate", 3e-5, "learning_rate"),
        ("epochs", 5, "num_train_epochs"),
        ("save_steps", 11, "save_steps"),
        ("eval_steps", 13, "eval_steps"),
        ("logging_steps", 3, "logging_steps"),
        ("gradient_accumulation_steps", 4, "gradient_accumulation_steps"),
        ("warmup_ratio", 0.1, "warmup_steps"),
        ("weight_decay", 0.01, "weight_decay"),
        ("lr_scheduler", "cosine", "lr_scheduler_type"),
        ("seed", 5, "seed"),
    ],
)
def test_every_hyper_parameter_reaches_the_trainer(param: str, value: Any, name: str) -> None:
    assert getattr(arguments(**{param: value}), name) == value


def test_defaults_are_the_interface_document_s() -> None:
    made = arguments()
    assert (made.per_device_train_batch_size, made.learning_rate, made.num_train_epochs) == (4, 2e-4, 3)
    assert (made.save_steps, made.eval_steps) == (100, 100)
    assert HyperParams().max_seq_length == 2048
    assert made.eval_strategy == "no"
    assert arguments(evaluates=True).eval_strategy == "steps"


def test_rows_are_cut_only_when_asked() -> None:
    assert arguments(max_seq_length=99).max_length is None
    assert arguments(replace(SPEC, long_rows=LongRows.TRUNCATE), max_seq_length=99).max_length == 99
    packed = arguments(max_seq_length=99, packing=True)
    assert (packed.packing, packed.max_length) == (True, 99)


def test_dpo_has_its_beta() -> None:
    assert arguments(replace(SPEC, method=Method.DPO), beta=0.3).beta == 0.3


def test_every_lora_field_reaches_peft() -> None:
    from engines.training.trainer.build import lora_config

    made = lora_config(Lora(r=8, alpha=4, dropout=0.2, target_modules=("q_proj", "v_proj"), bias="lora_only"))
    assert (made.r, made.lora_alpha, made.lora_dropout, made.bias) == (8, 4, 0.2, "lora_only")
    assert made.target_modules == {"q_proj", "v_proj"}
    assert lora_config(Lora()).target_modules == "all-linear"


def test_a_spec_survives_its_file(tmp_path: Path) -> None:
    spec = replace(SPEC, lora=Lora(target_modules=("q_proj",)), quantization=Quantization(), export="merged")
    spec.save(tmp_path / "spec.json")
    assert TrainingSpec.load(tmp_path / "spec.json") == spec
    whole_model = replace(SPEC, lora=None)
    whole_model.save(tmp_path / "spec.json")
    assert TrainingSpec.load(tmp_path / "spec.json") == whole_model


def test_quantization_needs_a_gpu() -> None:
    import torch

    from engines.training.trainer.build import load_model
    from engines.training.trainer.errors import TrainingError

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(TrainingError, match="needs an NVIDIA GPU"):
        load_model(replace(SPEC, quantization=Quantization()))


def test_half_the_batch_is_twice_the_accumulation() -> None:
    from engines.training.trainer.run import halved

    made = halved(HyperParams(batch_size=8, gradient_accumulation_steps=2))
    assert (made.batch_size, made.gradient_accumulation_steps) == (4, 4)
    odd = halved(HyperParams(batch_size=5))
    assert odd.batch_size * odd.gradient_accumulation_steps >= 5


def test_out_of_memory_goes_on_with_a_smaller_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from engines.training.trainer import run as module

    tried: list[int] = []

    class Trainer:
        class state:
            global_step, max_steps, log_history = 3, 3, [{"loss": 0.5}]

        eval_dataset = None

        def is_world_process_zero(self) -> bool:
            return True

        def save_model(self, folder: str) -> None:
            Path(folder).mkdir()

    def train(spec: Any, params: HyperParams, *_: Any) -> Trainer:
        tried.append(params.batch_size)
        if params.batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Trainer()

    class Channel:
        said: list[tuple[str, dict[str, Any]]] = []

        def send(self, event: str, **values: Any) -> None:
            self.said.append((event, values))

    monkeypatch.setattr(module, "_train", train)
    monkeypatch.setattr(module, "read_dataset", lambda spec: Dataset("text", 1, [], []))
    channel = Channel()
    module.run(replace(SPEC, work_dir=str(tmp_path), params=HyperParams(batch_size=8)), channel, None)  # type: ignore[arg-type]
    assert tried == [8, 4, 2]
    assert [event for event, _ in channel.said] == ["note", "note", "completed"]
    assert "batchSize 2 and gradientAccumulationSteps 4" in channel.said[1][1]["message"]


def test_failures_say_what_to_do() -> None:
    import torch

    from engines.training.trainer.errors import to_training_error

    cases = [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", "free some space"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk_full", "free some space"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", "lower maxSeqLength"),
        (whole("the dataset does not exist any more"), "dataset", "does not exist any more"),
        (ValueError("/secret/path"), "trainer_error", "The trainer failed (ValueError); the job's log tells more"),
    ]
    for error, code, words in cases:
        found = to_training_error(error)
        assert found.code == code
        assert words in str(found)


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    from engines.training.trainer import checkpoints

    for step in (5, 10, 15):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"x" * 100)
        if step < 15:
            checkpoints.mark_complete(folder)
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / "weights").write_bytes(b"x" * 50)
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-5"
    assert sorted(checkpoints.remove_broken(tmp_path)) == ["checkpoint-10", "checkpoint-15"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


@pytest.mark.parametrize(
    ("bfloat16", "trained", "whole"), [(True, "bfloat16", "bfloat16"), (False, "float16", "float32")]
)
def test_half_precision_is_what_the_gpu_computes_with(
    monkeypatch: pytest.MonkeyPatch, bfloat16: bool, trained: str, whole: str
) -> None:
    """A T4 or V100 has no bfloat16. Patched: no such card is here."""
    import torch

    from engines.training.trainer import build

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)
    monkeypatch.setattr(build, "SFTConfig", lambda **values: values)
    spec = TrainingSpec(job_id="j", base_model="m", dataset="d", work_dir="w")
    found: Any = build.arguments(spec, spec.params, False)
    assert (found["bf16"], found["fp16"]) == (bfloat16, not bfloat16)
    assert build.weights_type(spec) is getattr(torch, trained)
    assert build.weights_type(replace(spec, lora=None)) is getattr(torch, whole)
