"""Data sets, templates, trainings: accepted and trained on whole, or refused with line and cause."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from testing.stack import Stack
from tests.cases.product import Client, details

pytestmark = pytest.mark.full

_TEMPLATE = """{%- for m in messages %}{%- if m['role'] not in ['system','user','assistant'] %}{{ raise_exception('unknown role') }}{%- endif %}
{%- set c = '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' %}
{%- if loop.index0 == 0 %}{%- set c = bos_token + c %}{%- endif %}{{ c }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}
"""
_TURNS = '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n'


@pytest.fixture
def template(product: Stack) -> Callable[[str], None]:
    """Set the chat template of the model ``tpl``."""
    folder = product.folder / "tpl"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<|endoftext|>"}))

    def write(text: str) -> None:
        (folder / "chat_template.jinja").write_text(text)

    return write


def accept(client: Client, dataset: str, **values: object) -> str:
    answer = client.train(dataset, **values)
    assert answer.status_code == 200, answer.text
    job: str = answer.json()["jobId"]
    return job


def test_02_a_template_of_llama_s_kind_is_trained_to_the_end(
    client: Client, data: Path, template: Callable[[str], None]
) -> None:
    template(_TEMPLATE)
    (data / "t.jsonl").write_text(_TURNS)
    job = client.finish(accept(client, "t.jsonl", baseModel="tpl", name="tpl1"))
    assert job["status"] == "completed", job
    row = '{"messages":[{"role":"user","content":"a"},{"role":"tool","content":"3"},{"role":"assistant","content":"b"}]}\n'
    (data / "tool.jsonl").write_text(row)
    [problem] = details(client.train("tool.jsonl", baseModel="tpl"))
    assert problem["description"].startswith("line 1: ")
    assert "unknown role" in problem["description"]


@pytest.mark.parametrize(
    "part",
    [
        "{% generation %}x{% endgeneration %}",
        "{% for m in messages %}{% break %}{% endfor %}",
        "{{ messages | tojson(ensure_ascii=False) }}",
        "{{ strftime_now('%d %b %Y') }}",
        "{{ bos_token }}{{ eos_token }}",
    ],
)
def test_02_what_transformers_offers_a_template(
    client: Client, data: Path, template: Callable[[str], None], part: str
) -> None:
    template(_TEMPLATE + part)
    (data / "t.jsonl").write_text(_TURNS)
    job = accept(client, "t.jsonl", baseModel="tpl")
    client.post(f"/api/v1/training/cancel/{job}", {})


@pytest.mark.parametrize("broken", ["{% for %}", "{{ messages[0].nope.nope }}", "{{ 1 / 0 }}"])
def test_02_a_template_that_is_broken(client: Client, data: Path, template: Callable[[str], None], broken: str) -> None:
    template(broken)
    (data / "t.jsonl").write_text(_TURNS)
    [problem] = details(client.train("t.jsonl", baseModel="tpl"))
    assert "chat template" in problem["description"]


def test_03_named_templates(client: Client, product: Stack, data: Path) -> None:
    folder = product.folder / "tpl"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    default = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    named = [{"name": "default", "template": default}, {"name": "tool_use", "template": "{{ raise_exception('no') }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    try:
        (data / "t.jsonl").write_text(_TURNS)
        job = client.finish(accept(client, "t.jsonl", baseModel="tpl", name="tpl3"))
        assert job["status"] == "completed", job
    finally:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        shutil.copy(Path("models/demo/chat_template.jinja"), folder)


@pytest.mark.parametrize(
    "rows",
    [
        '{"system":"You are a pirate.","conversations":[{"from":"human","value":"hi"},{"from":"gpt","value":"arr"}]}',
        '{"instruction":"more","input":"","output":"b","system":"You are a pirate.","history":[["hi","arr"]]}',
        '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"W","weight":0},{"role":"user","content":"b"},'
        '{"role":"assistant","content":"right","weight":1}]}',
        '{"messages":[{"role":"system","content":""},{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}',
        '{"instruction":"a","input":"","output":""}\n{"instruction":"a","input":"","output":"b"}',
        '{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant","content":"b"}]}',
        '{"messages":[{"role":"developer","content":"s"},{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}',
        '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"tool","content":"3"},'
        '{"role":"assistant","content":"3"}]}',
        '[{"text":"a b c"},\n {"text":"d"}]',
        '{"prompt":"hi","completion":[{"role":"assistant","content":"yo"}]}',
    ],
)
def test_39_40_42_43_what_is_accepted_is_trained(client: Client, data: Path, rows: str) -> None:
    (data / "rows.jsonl").write_text(rows + "\n")
    job = client.finish(accept(client, "rows.jsonl", name="rows"))
    assert job["status"] == "completed", job
    if '"output":""' in rows:
        events = client.request("GET", f"{client.native}/api/v1/training/{job['jobId']}/events").text
        assert "1 rows have an empty answer" in events


def test_42_preference_rows_as_the_hub_has_them(client: Client, data: Path) -> None:
    answers = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}] for text in ("good", "bad")]
    row = {"prompt": "hi", "chosen": answers[0], "rejected": answers[1]}
    (data / "dpo.jsonl").write_text(json.dumps(row) + "\n")
    job = client.finish(accept(client, "dpo.jsonl", name="dpo", method="dpo"))
    assert job["status"] == "completed", job


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "mixed.jsonl",
            '{"prompt":[{"role":"user","content":"hi"}],"completion":"yo"}\n{"prompt":"hi","completion":"yo"}\n',
            "line 2, prompt",
        ),
        (
            "calls.jsonl",
            '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]}]}\n',
            "messages[1].tool_calls",
        ),
        ("semi.csv", "instruction;input;output\na;;b\n", "';'"),
        ("nothing.jsonl", '{"instruction":"a","input":"","output":""}\n', "empty answer"),
    ],
)
def test_43_44_what_is_refused_names_the_cause(client: Client, data: Path, name: str, content: str, words: str) -> None:
    (data / name).write_text(content)
    assert any(words in problem["description"] for problem in details(client.train(name)))


def test_45_unknown_target_modules(client: Client, data: Path) -> None:
    (data / "t.jsonl").write_text(_TURNS)
    job = client.finish(accept(client, "t.jsonl", name="tm", loraConfig={"targetModules": ["nope"]}))
    assert job["status"] == "failed"
    assert "nope" in job["message"]
    assert "q_proj" in job["message"] and "down_proj" in job["message"]


@pytest.mark.parametrize("encoding", ["gbk", "utf-16"])
def test_64_foreign_encodings(client: Client, data: Path, encoding: str) -> None:
    (data / "foreign.jsonl").write_bytes('{"text":"你好"}\n'.encode(encoding))
    [problem] = details(client.train("foreign.jsonl"))
    assert "UTF-8" in problem["description"]


def test_64_what_is_read(client: Client, data: Path) -> None:
    lines = ['{"text":"a\u2028b"}', '{"text":"a","text":"b","score":NaN}', "", "", ""]
    (data / "odd.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    job = accept(client, "odd.jsonl")
    client.post(f"/api/v1/training/cancel/{job}", {})
