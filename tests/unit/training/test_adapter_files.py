"""An adapter that no worker could serve is found before anybody asks for it."""

import json
import shutil
from pathlib import Path

import pytest

from engines.model_spec import ModelSpec
from engines.training.adapter_files import BrokenAdapter, inspect_adapter


def write_adapter(folder: Path, rank: int = 8, **config: object) -> Path:
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "bias": "none", **config}))
    weights = {
        "base_model.model.q_proj.lora_A.weight": torch.ones(8, 16),
        "base_model.model.q_proj.lora_B.weight": torch.ones(16, 8),
    }
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def spec(**values: object) -> ModelSpec:
    return ModelSpec(**{"id": "m", "model_path": "m", "enable_lora": True, "max_lora_rank": 16, **values})  # type: ignore[arg-type]


def test_a_good_adapter_has_a_rank_and_a_checksum_of_its_content(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    facts = inspect_adapter(folder, spec())
    assert facts.rank == 8
    shutil.copytree(folder, tmp_path / "b")
    assert inspect_adapter(tmp_path / "b", spec()).checksum == facts.checksum
    other = write_adapter(tmp_path / "c", lora_alpha=3)
    assert inspect_adapter(other, spec()).checksum != facts.checksum


def cut_weights(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def cut_header(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json is missing"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "does not describe a LoRA adapter"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (cut_weights, "cut off"),
        (cut_header, "cut off"),
        (lambda folder: write_adapter(folder, rank=4), "is not of rank 4"),
        (lambda folder: write_adapter(folder, bias="all"), "biases"),
    ],
)
def test_a_broken_adapter_is_told(tmp_path: Path, breakage, words: str) -> None:  # type: ignore[no-untyped-def]
    folder = write_adapter(tmp_path / "a")
    breakage(folder)
    with pytest.raises(BrokenAdapter, match=words):
        inspect_adapter(folder, spec())


def test_an_adapter_its_model_cannot_serve(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    with pytest.raises(BrokenAdapter, match="rank 8 is above model 'm''s maxLoraRank 4"):
        inspect_adapter(folder, spec(max_lora_rank=4))
    with pytest.raises(BrokenAdapter, match="not configured to take adapters"):
        inspect_adapter(folder, spec(enable_lora=False))
