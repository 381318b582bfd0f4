"""What is read from a dataset file, and what is said of a bad one."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from engines.training.datasets.lengths import TokenCounter
from engines.training.datasets.load import Dataset, load_dataset
from engines.training.datasets.rows import MAX_PROBLEMS, DatasetError, Problem
from engines.training.spec import LongRows, Method
from settings import ROOT

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A model."},
]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]


def load(path: Path, method: str = Method.SFT, **options: Any) -> Dataset:
    values = {"format": "", "counter": None, "max_tokens": 100, "long_rows": LongRows.REFUSE, "eval_split": 0.0}
    return load_dataset(path, method, **{**values, **options})


def jsonl(folder: Path, *rows: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def problems(path: Path, **options: Any) -> list[Problem]:
    with pytest.raises(DatasetError) as caught:
        load(path, **options)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("row", "format", "samples"),
    [
        (
            {"messages": MESSAGES},
            "messages",
            [
                {"prompt": MESSAGES[:2], "completion": [MESSAGES[2]]},
                {"prompt": MESSAGES[:4], "completion": [MESSAGES[4]]},
            ],
        ),
        (
            {"conversations": SHAREGPT},
            "conversations",
            [
                {
                    "prompt": [{"role": "user", "content": "Hi"}],
                    "completion": [{"role": "assistant", "content": "Hello."}],
                }
            ],
        ),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", [{"prompt": "a", "completion": "b"}]),
        (
            {"instruction": "Do", "input": "this", "output": "done"},
            "instruction",
            [{"prompt": "### Instruction:\nDo\n\n### Input:\nthis\n\n### Response:\n", "completion": "done"}],
        ),
        (
            {"instruction": "Do", "output": "done"},
            "instruction",
            [{"prompt": "### Instruction:\nDo\n\n### Response:\n", "completion": "done"}],
        ),
        ({"text": "a b"}, "text", [{"text": "a b"}]),
    ],
)
def test_each_format_is_detected(tmp_path: Path, row: Any, format: str, samples: list[Any]) -> None:
    found = load(jsonl(tmp_path, row))
    assert (found.format, found.train) == (format, samples)


def test_preferences_are_for_dpo_alone(tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path = jsonl(tmp_path, row)
    assert load(path, Method.DPO).train == [row]
    assert "these rows are of the kind 'preference'" in problems(path)[0].description
    with pytest.raises(DatasetError, match="needs rows with prompt, chosen and rejected"):
        load(jsonl(tmp_path, {"text": "x"}), Method.DPO)


def test_every_file_type_holds_the_same_rows(tmp_path: Path) -> None:
    rows = [{"prompt": '你好\n, "x"', "completion": f"answer {number}"} for number in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    (tmp_path / "a.csv").write_text(
        "prompt,completion\r\n" + "".join(f'"你好\n, ""x""",answer {number}\r\n' for number in range(3)),
        encoding="utf-8",
        newline="",
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    files = [jsonl(tmp_path, *rows), tmp_path / "a.json", tmp_path / "a.csv", tmp_path / "a.parquet"]
    assert [load(path).train for path in files] == [rows] * 4


@pytest.mark.parametrize(
    ("name", "content", "line", "words"),
    [
        ("a.jsonl", '{"text": "x"}\n\n{"text": \n', 3, "not JSON"),
        ("a.json", '[\n {"text": "x"},\n {"text" "y"}\n]', 3, "not valid JSON"),
        ("a.json", '[\n {"text": "x"}\n {"text": "y"}\n]', 3, "','"),
        ("a.json", '{"text": "x"}', 1, "array"),
        ("a.csv", "text\nx\ny,z\n", 3, "more fields than the header"),
        ("a.parquet", "nothing", 0, "not a Parquet file"),
        ("a.txt", "x", 0, ".json, .jsonl, .csv, .parquet"),
        ("a.jsonl", "", 0, "no row"),
        ("a.jsonl", '{"text": "x"}\n{"txt": "y"}\n', 2, "'text' is missing"),
        ("a.jsonl", '{"other": "x"}\n', 1, "no known kind of row"),
        ("a.jsonl", '["x"]\n', 1, "must be an object, not str"),
        ("a.jsonl", '{"text": "x"}\n["x"]\n', 2, "must be an object"),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path: Path, name: str, content: str, line: int, words: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    [problem] = problems(tmp_path / name)
    assert problem.line == line
    assert words in problem.description


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\xff\xfe"}')
    assert "not UTF-8" in problems(tmp_path / "a.jsonl")[0].description


@pytest.mark.parametrize(
    ("row", "field", "words"),
    [
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "system, user, assistant, tool"),
        ({"messages": [{"role": "user", "content": True}]}, "messages[0].content", "must be text, not bool"),
        ({"messages": []}, "messages", "must be a list of messages"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages", "no answer"),
        ({"messages": ["x"]}, "messages[0]", "must be an object"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "conversations[0].from", "human"),
        ({"prompt": " ", "completion": "x"}, "prompt", "must not be empty"),
        ({"instruction": "x", "input": {}, "output": "y"}, "input", "must be text, not dict"),
    ],
)
def test_a_bad_row_is_told_with_its_field(tmp_path: Path, row: Any, field: str, words: str) -> None:
    [problem] = problems(jsonl(tmp_path, row))
    assert (problem.line, problem.field) == (1, field)
    assert words in problem.description


def test_many_bad_rows_are_told_up_to_a_bound(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *[{"text": ""}] * 100)
    found = problems(path)
    assert [problem.line for problem in found] == list(range(1, MAX_PROBLEMS + 1))


def test_lengths_are_those_of_the_model_s_own_library(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = ROOT / "models" / "demo"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    counter = TokenCounter(folder)
    assert counter.has_template
    sample = {"prompt": MESSAGES[:4], "completion": [MESSAGES[4]]}
    assert counter.count(sample) == len(tokenizer.apply_chat_template(MESSAGES, return_dict=False))
    assert counter.count({"text": "你好 there"}) == len(tokenizer("你好 there", add_special_tokens=False)["input_ids"])


def test_long_rows_are_refused_dropped_or_cut(tmp_path: Path) -> None:
    counter = TokenCounter(ROOT / "models" / "demo")
    path = jsonl(tmp_path, {"text": "short"}, {"text": "long " * 200}, {"text": "long " * 300})
    [problem] = problems(path, counter=counter)
    assert problem.line == 3
    assert "2 of 3 rows are longer than maxSeqLength (100 tokens), the longest has" in problem.description
    assert load(path, counter=counter, long_rows=LongRows.DROP).train == [{"text": "short"}]
    cut = load(path, counter=counter, long_rows=LongRows.TRUNCATE)
    assert (len(cut.train), cut.long_rows) == (3, 2)
    assert (
        "all would be dropped" in problems(path, counter=counter, max_tokens=1, long_rows=LongRows.DROP)[0].description
    )


def test_an_eval_split_keeps_whole_rows_apart(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *[{"text": f"row {number}"} for number in range(10)])
    found = load(path, eval_split=0.2)
    assert [sample["text"] for sample in found.evaluation] == ["row 8", "row 9"]
    assert len(found.train) == 8
    for share, part in ((0.01, "evaluation"), (0.99, "training")):
        [problem] = problems(path, eval_split=share)
        assert problem.field == "hyperParams.evalSplit"
        assert f"leaves none for {part}" in problem.description
