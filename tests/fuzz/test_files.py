"""Data sets, variables and model files: read, or refused in words; what is accepted the trainer takes."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configuration import env
from configuration.errors import ConfigurationError
from engines.errors import ConfigError
from engines.registry import Registry, load_registry
from engines.training.datasets.check import check
from engines.training.datasets.check_messages import CheckRequest
from engines.training.datasets.lengths import TokenCounter
from engines.training.datasets.load import load_dataset
from engines.training.spec import LongRows, Method
from settings import ROOT, Settings
from tests.fuzz.conftest import mutations, values

_USER, _ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
_ROWS: list[Any] = [
    [{"messages": [{"role": "system", "content": "s"}, _USER, {**_ANSWER, "weight": 0}, _USER, _ANSWER]}],
    [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}],
    [{"instruction": "a", "input": "b", "output": "c", "history": [["x", "y"]], "system": "s"}] * 2,
    [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}],
    [{"prompt": [_USER], "completion": [_ANSWER]}],
    [{"text": "a b c"}, {"text": "d"}],
]
_PREFERENCES: list[Any] = [
    [{"prompt": "a", "chosen": [_USER, _ANSWER], "rejected": [_USER, _ANSWER]}],
    [{"input": {"messages": [_USER]}, "preferred_output": [_ANSWER], "non_preferred_output": [_ANSWER]}],
    [{"prompt": "a", "chosen": "b", "rejected": "c"}],
]
_DEMO = ROOT / "models" / "demo"


@pytest.fixture(scope="module")
def counter() -> TokenCounter:
    return TokenCounter(_DEMO)


def require_trainable(path: Path, method: str, counter: TokenCounter) -> None:
    """A file is refused with words, or the trainer's libraries take every row of it."""
    found = check(CheckRequest(str(path), method, "", str(_DEMO), 2048, LongRows.DROP, 0.0))
    for problem in found.problems:
        assert problem.description
        json.dumps([problem.field, problem.description])
    if found.problems:
        return
    from datasets import Dataset

    loaded = load_dataset(path, method, "", counter, 2048, LongRows.DROP, 0.0)
    rows = Dataset.from_list(loaded.train)
    assert len(rows) == len(loaded.train) > 0
    for sample in rows:
        assert counter.count(sample) > 0 or "text" in sample


@pytest.mark.parametrize("method", [Method.SFT, Method.DPO])
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_rows(tmp_path: Path, counter: TokenCounter, method: str, kind: str) -> None:
    path = tmp_path / f"x.{kind}"

    @given(mutations(_PREFERENCES if method == Method.DPO else _ROWS))
    def ask(rows: Any) -> None:
        if kind == "parquet":
            try:
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            except (
                pyarrow.ArrowException,
                LookupError,
                AttributeError,
                TypeError,
                ValueError,
                RecursionError,
                OverflowError,
            ):
                # No table can hold this.
                return
        elif kind == "json":
            path.write_text(json.dumps(rows))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows])))
        require_trainable(path, method, counter)

    ask()


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv"])
def test_broken_files(tmp_path: Path, counter: TokenCounter, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    rows = [{"instruction": "a", "input": "é", "output": "你好"}] * 3
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "csv":
        path.write_text("instruction,input,output\n" + 'a,"é, b",你好\n' * 3)
    else:
        path.write_text(json.dumps(rows) if kind == "json" else "\n".join(json.dumps(row) for row in rows))
    whole = path.read_bytes()

    @given(st.integers(0, len(whole)), st.binary(max_size=8), st.integers(0, 8))
    def ask(at: int, junk: bytes, cut: int) -> None:
        path.write_bytes(whole[:at] + junk + whole[at + cut :])
        require_trainable(path, Method.SFT, counter)

    ask()


def test_variables() -> None:
    words = st.text(st.characters(exclude_characters="\0"), max_size=30)
    typical = st.sampled_from(
        ["", " ", "0", "-1", "1e9", "nan", "inf", "tcp://1.2.3.4:5", "٣", "~", "~nobody/x", "a\nb", "*", "1_0"]
    )

    @given(st.sampled_from(fields(Settings)), words | typical)
    def ask(field: Any, value: str) -> None:
        described = field.metadata
        try:
            env.read({described["variable"]: value}, described["variable"], field.default, described["parse"])
        except ConfigurationError as error:
            assert str(error).startswith(described["variable"])
            assert "\n" not in str(error)

    ask()


def test_model_files(tmp_path: Path) -> None:
    right = json.loads((ROOT / "config.json").read_text())
    path = tmp_path / "c.json"

    @given(mutations([right, right["models"], {"m": {"model_path": "x", "tool_call_parser": "hermes"}}]) | values)
    def ask(document: Any) -> None:
        path.write_text(json.dumps(document))
        try:
            assert isinstance(load_registry(path), Registry)
        except ConfigError as error:
            str(error).encode("utf-8", "strict")

    ask()
