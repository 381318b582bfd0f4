"""Answers of a wanted form, on real vLLM: forms that are wrong or not known, on every API, and forms that must end."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import httpx
import pytest

from testing import tool_model
from testing.stack import Stack
from testing.tool_model import transcripts
from tests.engine.conftest import serving

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (bin/test installs it)", allow_module_level=True)

# It comes with vLLM.
import jsonschema  # noqa: E402

_KIDS = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/N"}}}}
#: Schemas that agents' tools bring.
SCHEMAS: dict[str, Any] = {
    "an unknown type": {"type": "no-such"},
    "only itself": {"$ref": "#"},
    "names of properties": {"type": "object", "propertyNames": {"pattern": "^a"}},
    "a tuple": {"type": "array", "items": [{"type": "string"}], "additionalItems": False},
    "a pattern that is none": {"type": "string", "pattern": "(?<=a)b("},
    "a class of characters": {"type": "object", "properties": {"a": {"type": "string", "pattern": "\\p{L}+"}}},
    "recursion": {"type": "object", "properties": {"t": {"$ref": "#/$defs/N"}}, "$defs": {"N": _KIDS}},
    "several types": {"anyOf": [{"type": "null"}, {"enum": ["é", "日本", "😀", 1, None]}]},
    "nothing": {"enum": []},
    "true": True,
    "a list": [],
}
#: Legal, and so no reason to refuse.
LEGAL = ("recursion", "several types")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    strict = {**tool_model.ENTRY, "engineArgs": {"structured_outputs_config": {"backend": "xgrammar"}}}
    with serving(tmp_path_factory.mktemp("forms"), {"tools": tool_model.ENTRY, "strict": strict}) as stack:
        yield stack


_TURN = [{"role": "user", "content": transcripts.NO_ARGUMENTS}]


def asked(api: str, schema: Any) -> tuple[str, dict[str, Any]]:
    """The path and the body that ask for a schema."""
    form = {"name": "s", "schema": schema}
    tool = {"name": "s", "parameters": schema}
    match api:
        case "chat":
            body: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": form}, "messages": _TURN}
        case "chat, a tool":
            body = {"tools": [{"type": "function", "function": tool}], "tool_choice": "required", "messages": _TURN}
        case "responses":
            body = {"text": {"format": {"type": "json_schema", **form}}, "input": transcripts.NO_ARGUMENTS}
            return "/responses", {**body, "model": "tools", "max_output_tokens": 300, "temperature": 0}
        case "messages":
            body = {"output_config": {"format": {"type": "json_schema", "schema": schema}}, "messages": _TURN}
        case "messages, a tool":
            tool = {"name": "s", "input_schema": schema}
            body = {"tools": [tool], "tool_choice": {"type": "any"}, "messages": _TURN}
        case _:
            raise AssertionError(api)
    path = "/messages" if api.startswith("messages") else "/chat/completions"
    return path, {**body, "model": "tools", "max_tokens": 300, "temperature": 0}


def written(api: str, answer: dict[str, Any]) -> str | None:
    """What was written in the form; None where the answer was cut before its end."""
    match api:
        case "chat":
            [choice] = answer["choices"]
            return choice["message"]["content"] if choice["finish_reason"] == "stop" else None
        case "chat, a tool":
            [choice] = answer["choices"]
            return (
                None
                if choice["finish_reason"] == "length"
                else choice["message"]["tool_calls"][0]["function"]["arguments"]
            )
        case "responses":
            texts = [item["content"][0]["text"] for item in answer["output"] if item["type"] == "message"]
            return "".join(texts) if answer["status"] == "completed" else None
        case "messages":
            texts = [block["text"] for block in answer["content"] if block["type"] == "text"]
            return "".join(texts) if answer["stop_reason"] == "end_turn" else None
    calls = [block["input"] for block in answer["content"] if block["type"] == "tool_use"]
    return json.dumps(calls[0]) if calls and answer["stop_reason"] != "max_tokens" else None


@pytest.mark.parametrize("api", ["chat", "chat, a tool", "responses", "messages", "messages, a tool"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_refused_by_name_or_kept_to(stack: Stack, raw: httpx.Client, name: str, api: str) -> None:
    [worker] = stack.fleet().living
    schema = SCHEMAS[name]
    path, body = asked(api, schema)
    for streamed in (False, True):
        answer = raw.post(path, json={**body, "stream": streamed})
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 200:
            # What is found out behind thoughts can but end the stream.
            assert "pydantic" not in answer.text and "nternal server error" not in answer.text, answer.text
            assert '"error":{' not in answer.text or name not in LEGAL, answer.text
            found = None if streamed else written(api, answer.json())
            if found is not None and isinstance(schema, dict):
                jsonschema.validate(json.loads(found), schema)
            continue
        assert name not in LEGAL or "tool" in api, answer.text
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error" and len(error["message"]) < 600, answer.text
        if not api.startswith("messages"):
            field = {"chat": "response_format", "chat, a tool": "tools", "responses": "text"}[api]
            assert str(error["param"]).startswith(field), answer.text
    plain = raw.post("/chat/completions", json={"model": "tools", "messages": _TURN, "max_tokens": 3})
    assert plain.status_code == 200
    assert stack.fleet().living[0].instance_id == worker.instance_id
    [log] = [process.log for process in stack.processes if process.name == "w1"]
    assert "does not end within" not in log.read_text(), "an end was held back"


def test_an_operator_may_have_refused_what_is_not_kept_to(raw: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "multipleOf": 7}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    body = {"messages": _TURN, "max_tokens": 20, "response_format": form}
    assert raw.post("/chat/completions", json={"model": "tools", **body}).status_code == 200
    for streamed in (False, True):
        refused = raw.post("/chat/completions", json={"model": "strict", "stream": streamed, **body})
        assert refused.status_code == 400, refused.text
        error = refused.json()["error"]
        assert (error["param"], error["code"]) == ("response_format.json_schema.schema", "invalid_schema"), error


def test_a_model_that_is_stuck_in_blanks_comes_to_an_end(raw: httpx.Client) -> None:
    number = {"type": "integer", "minimum": 0, "maximum": 9}
    schema = {"type": "object", "properties": {"n": number}, "required": ["n"], "additionalProperties": False}
    blanks = set()
    for text in (" ", "\n", "  ", "\t", "    "):
        root = str(raw.base_url).rstrip("/").removesuffix("/v1")
        blanks |= set(raw.post(f"{root}/tokenize", json={"model": "tools", "prompt": text}).json()["tokens"])
    _, body = asked("chat", schema)
    answer = raw.post(
        "/chat/completions",
        json={
            **body,
            "max_tokens": 600,
            "chat_template_kwargs": {"enable_thinking": False},
            "logit_bias": {str(token): 100 for token in blanks},
        },
    )
    [choice] = answer.json()["choices"]
    assert choice["finish_reason"] == "stop", answer.text
    assert set(json.loads(choice["message"]["content"])) == {"n"}
    assert "\n" in choice["message"]["content"] or "  " in choice["message"]["content"], "it was not stuck"
