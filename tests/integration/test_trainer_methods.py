"""The trainer process by itself: every method and kind of result, on the real model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from engines.training.spec import HyperParams, Lora, Method, TrainingSpec
from settings import ROOT
from testing import tool_model

pytestmark = pytest.mark.full


MODEL = ROOT / "models" / "demo"
PARAMS = HyperParams(batch_size=4, learning_rate=5e-3, epochs=8, save_steps=5, eval_steps=4, logging_steps=2)
ROWS = [{"prompt": f"Say {number}", "completion": f"{number} it is"} for number in range(10)]


def train(folder: Path, dataset: Path, base: Path = MODEL, **values: Any) -> list[dict[str, Any]]:
    work_dir = folder / "work"
    work_dir.mkdir()
    defaults: dict[str, Any] = {"params": PARAMS, "lora": Lora(r=8)}
    TrainingSpec("job-1", str(base), str(dataset), str(work_dir), **{**defaults, **values}).save(folder / "spec.json")
    done = subprocess.run(
        [sys.executable, "-m", "engines.training.trainer", str(folder / "spec.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_preferences_are_learned(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{number}", "chosen": "yes captain", "rejected": "no never"} for number in range(8)]
    (tmp_path / "dpo.json").write_text(json.dumps(rows))
    events = train(tmp_path, tmp_path / "dpo.json", method=Method.DPO)
    losses = [event["loss"] for event in events if event["event"] == "metrics"]
    # At the start both answers are as likely as to the base model: the loss is ln 2.
    assert losses[0] == pytest.approx(0.693, abs=0.01)
    assert losses[-1] < 0.1
    assert events[-1]["result"]["kind"] == "adapter"


@pytest.mark.filterwarnings("ignore")
def test_tools_are_learned(tmp_path: Path) -> None:
    """Rows with other schemas, and one without tools: nothing of one is in another, and answers alone are learnt."""
    from transformers import AutoTokenizer

    from engines.training.datasets.load import load_dataset
    from engines.training.trainer.tool_rows import have_tools, tokenized

    def tool(name: str, **properties: Any) -> dict[str, Any]:
        parameters = {"type": "object", "properties": properties}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    def row(question: str, name: str, tools: list[Any], **arguments: Any) -> dict[str, Any]:
        call = {"id": "1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        return {"messages": turns, "tools": tools}

    plain = [{"role": "user", "content": "hm"}, {"role": "assistant", "content": "ok"}]
    rows = [
        row("one", "f", [tool("f", a={"type": "string"})], a="x"),
        row("two", "g", [tool("g")]),
        {"messages": plain},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows * 4))
    samples = load_dataset(path, Method.SFT, "", None, 2048, "refuse", 0.0).train
    assert have_tools(samples) and not have_tools(samples[2:3])
    tokenizer = AutoTokenizer.from_pretrained(tool_model.PATH)
    first, second, third = tokenized(samples[:3], tokenizer, None)
    for each, shown, learnt in (
        (first, "Tools: f", "<tool_call>f</tool_call>"),
        (second, "Tools: g", "<tool_call>g</tool_call>"),
        (third, "hm", "ok"),
    ):
        assert shown in tokenizer.decode(each["input_ids"])
        answer = tokenizer.decode([label for label in each["labels"] if label >= 0])
        assert learnt in answer and shown not in answer
    assert "Tools" not in tokenizer.decode(third["input_ids"])
    assert len(tokenized(samples[:1], tokenizer, 5)[0]["input_ids"]) == 5

    events = train(tmp_path, path, base=tool_model.PATH)
    losses = [event["loss"] for event in events if event["event"] == "metrics"]
    assert losses[-1] < losses[0] / 2


@pytest.mark.filterwarnings("ignore")
def test_a_merged_model_is_base_and_adapter_in_one(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    params = replace(PARAMS, eval_split=0.2)
    events = train(tmp_path, tmp_path / "rows.parquet", export="merged", params=params)
    result, metrics = events[-1]["result"], events[-1]["metrics"]
    assert set(metrics) == {"loss", "eval_loss"}
    assert any("eval_loss" in event for event in events if event["event"] == "metrics")
    tokenizer = AutoTokenizer.from_pretrained(result["merged"])
    inputs = tokenizer("Say 3", return_tensors="pt")
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    plain = base(**inputs).logits.detach()
    adapted = PeftModel.from_pretrained(base, result["path"])(**inputs).logits
    merged = AutoModelForCausalLM.from_pretrained(result["merged"], dtype=torch.float32)(**inputs).logits
    assert torch.allclose(adapted, merged, atol=1e-3)
    assert not torch.allclose(plain, merged, atol=1e-1)


@pytest.mark.filterwarnings("ignore")
def test_all_weights_can_be_trained(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    events = train(tmp_path, tmp_path / "rows.jsonl", lora=None)
    result = events[-1]["result"]
    assert result["kind"] == "model"
    # A model folder like any other: it can be put into the model file.
    model, base = (AutoModelForCausalLM.from_pretrained(path) for path in (result["path"], MODEL))
    assert AutoTokenizer.from_pretrained(result["path"]).chat_template
    changed = [
        name
        for (name, own), (_, other) in zip(model.named_parameters(), base.named_parameters(), strict=True)
        if not own.float().equal(other.float())
    ]
    assert len(changed) == len(list(base.named_parameters()))
