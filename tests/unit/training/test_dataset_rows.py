"""Rows as people have them: trained on whole, or refused with line and field and a hint."""

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from engines.training.datasets.formats import COLUMNS, SampleReader
from engines.training.datasets.rows import DatasetError, Problem, read_rows
from engines.training.spec import Method

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
PIRATE = {"role": "system", "content": "You are a pirate."}


def samples(path: Path, method: str = Method.SFT) -> tuple[list[Any], SampleReader]:
    reader = SampleReader(method)
    found = [sample for _, row in reader.read(read_rows(path, COLUMNS)) for sample in row]
    return found, reader


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def problem_of(path: Path, method: str = Method.SFT) -> Problem:
    with pytest.raises(DatasetError) as caught:
        samples(path, method)
    return caught.value.problems[0]


@pytest.mark.parametrize(
    ("row", "sample"),
    [
        # A system prompt beside the turns.
        (
            {
                "system": PIRATE["content"],
                "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
            },
            {"prompt": [PIRATE, USER], "completion": [ANSWER]},
        ),
        (
            {"system": PIRATE["content"], "messages": [USER, ANSWER]},
            {"prompt": [PIRATE, USER], "completion": [ANSWER]},
        ),
        (
            {"instruction": "more", "input": "", "output": "b", "system": "Be brief.", "history": [["hi", "arr"]]},
            {
                "prompt": "Be brief.\n\n### Instruction:\nhi\n\n### Response:\narr\n\n"
                "### Instruction:\nmore\n\n### Response:\n",
                "completion": "b",
            },
        ),
        # Answers that must not be learnt.
        (
            {"messages": [USER, {**ANSWER, "content": "WRONG", "weight": 0}, USER, {**ANSWER, "weight": 1}]},
            {"prompt": [USER, {**ANSWER, "content": "WRONG"}, USER], "completion": [ANSWER]},
        ),
        # Spellings.
        (
            {"messages": [{"role": "developer", "content": "s"}, USER, ANSWER]},
            {"prompt": [{"role": "system", "content": "s"}, USER], "completion": [ANSWER]},
        ),
        (
            {"messages": [{"role": "system", "content": ""}, USER, ANSWER]},
            {"prompt": [{"role": "system", "content": ""}, USER], "completion": [ANSWER]},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, ANSWER]},
            {"prompt": [USER], "completion": [ANSWER]},
        ),
        (
            {"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"prompt": [USER], "completion": [ANSWER]},
        ),
        ({"prompt": 1, "completion": 2.5}, {"prompt": "1", "completion": "2.5"}),
        # One kind of value in a row's fields.
        ({"prompt": [USER], "completion": "b"}, {"prompt": [USER], "completion": [ANSWER]}),
        ({"prompt": "a", "completion": [ANSWER]}, {"prompt": [USER], "completion": [ANSWER]}),
        ({"messages": [USER, ANSWER], "tools": []}, {"prompt": [USER], "completion": [ANSWER]}),
    ],
)
def test_what_is_learnt(tmp_path: Path, row: dict[str, Any], sample: dict[str, Any]) -> None:
    found, _ = samples(written(tmp_path, row))
    assert found == [sample]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "bad"}]},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "bad"}]},
        {"prompt": "a", "chosen": [ANSWER], "rejected": "bad"},
        {
            "input": {"messages": [USER]},
            "preferred_output": [ANSWER],
            "non_preferred_output": [{**ANSWER, "content": "bad"}],
        },
    ],
)
def test_preferences(tmp_path: Path, row: dict[str, Any]) -> None:
    found, _ = samples(written(tmp_path, row), Method.DPO)
    assert found == [{"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "bad"}]}]


@pytest.mark.parametrize(
    ("rows", "line", "field", "words"),
    [
        ([{"prompt": [USER], "completion": "yo"}, {"prompt": "hi", "completion": "yo"}], 2, "prompt", "plain text"),
        (
            [{"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}],
            1,
            "messages[1].tool_calls[0]",
            "function",
        ),
        (
            [{"prompt": [USER], "completion": [{**ANSWER, "tool_calls": [{"id": "1"}]}]}],
            1,
            "completion[0].tool_calls",
            "messages",
        ),
        ([{"conversations": [{"from": "function_call", "value": "{}"}]}], 1, "conversations[0].from", "tool call"),
        ([{"messages": [USER, ANSWER], "tools": [{"x": 1}]}], 1, "tools[0]", "function"),
        ([{"messages": [USER, ANSWER], "tools": "f"}], 1, "tools", "JSON"),
        ([{"conversations": [{"from": "human", "value": "a"}], "tools": [{}]}], 1, "tools", "messages"),
        (
            [{"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}],
            1,
            "messages[1].tool_calls[0].function.arguments",
            "JSON",
        ),
        (
            [{"messages": [{**USER, "tool_calls": [{"function": {"name": "f"}}]}, ANSWER]}],
            1,
            "messages[0].role",
            "assistant",
        ),
        (
            [{"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}],
            1,
            "messages[0].content[0]",
            "image_url",
        ),
        ([{"messages": [USER, {**ANSWER, "weight": 0}]}], 1, "messages", "weight 0"),
        ([{"messages": [USER, {**ANSWER, "weight": 0.5}]}], 1, "messages[1].weight", "must be 0"),
        ([{"messages": [{"from": "human", "value": "a"}]}], 1, "messages[0]", "conversations"),
        ([{"Instruction": "a", "Output": "b"}], 1, "", "did you mean instruction, output?"),
        ([{"instruction": "a", "output": "b", "history": ["x"]}], 1, "history[0]", "pair"),
        ([{"instruction": "a", "output": ""}, {"instruction": "a", "output": " "}], 0, "", "empty answer"),
        ([{"system": "x", "messages": [PIRATE, USER, ANSWER]}], 1, "system", "another one"),
    ],
)
def test_what_is_refused(tmp_path: Path, rows: list[Any], line: int, field: str, words: str) -> None:
    problem = problem_of(written(tmp_path, *rows))
    assert (problem.line, problem.field) == (line, field), problem
    assert words in problem.description


def test_an_answer_that_does_not_follow_the_prompt(tmp_path: Path) -> None:
    row = {"prompt": "other", "chosen": [USER, ANSWER], "rejected": [ANSWER]}
    assert problem_of(written(tmp_path, row), Method.DPO).field == "chosen[0].role"


def test_empty_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "input": "", "output": text} for text in ("x", "", "y", " ")]
    found, reader = samples(written(tmp_path, *rows))
    assert [sample["completion"] for sample in found] == ["x", "y"]
    assert (reader.rows, reader.empty) == (2, 2)


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_in_a_jsonl(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps([{"text": "a"}, {"text": "b"}], indent=indent))
    assert samples(path)[0] == [{"text": "a"}, {"text": "b"}]


def test_joined_files_with_marks(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    one = codecs.BOM_UTF8 + b'{"text": "a\xe2\x80\xa8b"}\r\n'
    path.write_bytes(one + one + b"\n\n\n")
    assert samples(path)[0] == [{"text": "a\u2028b"}] * 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("instruction;input;output\na;;b\n", "';'"),
        ("instruction\tinput\toutput\na\t\tb\n", "a tab"),
        ("text,text\na,b\n", "twice"),
        ("text\na,b\n", "more fields"),
    ],
)
def test_csv_hints(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "x.csv").write_text(content)
    assert words in problem_of(tmp_path / "x.csv").description


@pytest.mark.parametrize(
    "content",
    [
        b"Instruction,Input,Output\na,,b\n",
        b"instruction, input, output\na,,b\n",
        b"\xef\xbb\xbfinstruction,input,output\r\na,,b\r\n,,\r\n",
        b",instruction,output\n0,a,b\n",
        b"instruction,output,,\na,b,,\n",
    ],
)
def test_csv_as_spreadsheets_write_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    found, _ = samples(tmp_path / "x.csv")
    assert found == [{"prompt": "### Instruction:\na\n\n### Response:\n", "completion": "b"}]


def test_csv_quotes_and_lines(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b'\xef\xbb\xbfinstruction,input,output\r\n"a\r\nb",,"c ""d"""\r\n')
    [sample] = samples(tmp_path / "x.csv")[0]
    assert sample["completion"] == 'c "d"'
    assert "a\r\nb" in sample["prompt"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ('{"text": "你好"}'.encode("gbk"), "code page"),
        ('{"text": "x"}'.encode("utf-16"), "UTF-16"),
        (gzip.compress(b'{"text": "x"}', mtime=0), "gzip"),
        (b"PK\x03\x04\xff\xff", "spreadsheet"),
        (b'{"text": "x"}\n{"text": "\\ud83d"}\n', "surrogate"),
        (b'{\n "text": "x"\n}\n', "several lines"),
        (b"{'text': 'x'}\n", "double"),
    ],
)
def test_files_in_other_encodings(tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(raw)
    assert words in problem_of(tmp_path / "x.jsonl").description


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ('{"data": [{"text": "a"}]}', 1, "'data'"),
        ('[{"text": "a"}]\n[{"text": "b"}]', 2, "joined"),
        ('[{"text": "a"},]', 1, "before the closing"),
    ],
)
def test_json_is_read_whole_or_not_at_all(tmp_path: Path, content: str, line: int, words: str) -> None:
    (tmp_path / "x.json").write_text(content)
    problem = problem_of(tmp_path / "x.json")
    assert problem.line == line
    assert words in problem.description


def test_columns_of_a_table_that_a_row_does_not_have(tmp_path: Path) -> None:
    rows = [{"messages": [{**USER, "weight": None}, {**ANSWER, "weight": 1}], "system": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert samples(tmp_path / "x.parquet")[0] == [{"prompt": [USER], "completion": [ANSWER]}]


def test_tools_and_calls(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    turns = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        ANSWER,
    ]
    found, _ = samples(written(tmp_path, {"messages": turns, "tools": [tool], "parallel_tool_calls": False}))
    called = {**call, "function": {"name": "f", "arguments": {"a": 1}}}
    assert found[0] == {
        "prompt": [USER],
        "completion": [{"role": "assistant", "content": "", "tool_calls": [called]}],
        "tools": [tool],
    }
    assert found[1]["prompt"][2] == {"role": "tool", "content": "sunny", "tool_call_id": "1"}
    # OpenAI's older words, and a table's text.
    older = [USER, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}]
    [first], _ = samples(written(tmp_path, {"messages": older, "functions": [tool["function"]]}))
    assert first["tools"] == [tool]
    assert first["completion"][0]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    [first], _ = samples(written(tmp_path, {"messages": [USER, ANSWER], "tools": json.dumps([tool])}))
    assert first["tools"] == [tool]


def test_preferences_by_the_names_of_openai_s_reference(tmp_path: Path) -> None:
    row = {
        "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
        "preferred_completion": [ANSWER],
        "non_preferred_completion": [{**ANSWER, "content": "bad"}],
    }
    found, _ = samples(written(tmp_path, row), Method.DPO)
    assert found == [{"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "bad"}]}]
