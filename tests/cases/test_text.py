"""Text: any Unicode at any place, numbers of any size."""

import json
from pathlib import Path

import pytest

from testing.stack import Stack
from tests.cases.product import Client, details

pytestmark = pytest.mark.full

_HALVES = b"\xed\xa0\xbd\xed\xb8\x80"


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (
            r'{"messages":[{"role":"user","content":"hi \ud83d"},{"role":"assistant","content":"ok"}]}',
            "messages[0].content",
        ),
        (r'{"text":"hi \ud83d"}', "text"),
        (r'{"instruction":"a","input":"","output":"\udc00"}', "output"),
    ],
)
def test_04_a_lone_surrogate_in_a_dataset(client: Client, data: Path, row: str, field: str) -> None:
    (data / "sur.jsonl").write_text(row + "\n")
    [problem] = details(client.train("sur.jsonl"))
    assert problem["field"] == "datasetPath"
    assert problem["description"].startswith(f"line 1, {field}: ")
    assert "surrogate" in problem["description"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"model":"demo","messages":[{"role":"user","content":"' + _HALVES + b'"}]}', "messages[0].content"),
        (json.dumps({"model": "demo", "messages": [{"role": "user", "content": "\ud800"}]}).encode("utf-16"), None),
        (b'{"model":"demo","messages":[{"role":"user","content":"x"}],"stop":["\xed\xa0\xbd"]}', "stop[0]"),
        (rb'{"model":"demo","messages":[{"role":"user","content":"\ud800"}]}', "messages[0].content"),
        (rb'{"model":"demo","messages":[{"role":"user","content":"x"}],"\ud800":1}', "\\ud800"),
    ],
)
def test_05_openai_text_that_cannot_be_encoded(client: Client, body: bytes, field: str | None) -> None:
    answer = client.post("/v1/chat/completions", body, native=False)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "invalid_text"
    if field != "\\ud800":
        assert error["param"] == field


def test_05_native_text_that_cannot_be_encoded(client: Client) -> None:
    for path in ("/api/v1/inference", "/api/v1/inference/stream"):
        answer = client.post(path, b'{"modelId":"demo","prompt":"' + _HALVES + b'"}')
        [problem] = details(answer)
        assert (problem["type"], problem["field"]) == ("invalid_text", "prompt")


@pytest.mark.parametrize(
    ("method", "path", "body", "statuses"),
    [
        ("DELETE", "/adapters/captain@%C2%B2", None, (404,)),
        ("DELETE", "/adapters/captain@99999999999999999999", None, (404,)),
        ("POST", "/adapters/captain/promote", {"version": 10**20}, (400,)),
        ("POST", "/adapters/captain/promote", {"version": 2**62}, (400,)),
        ("POST", "/inference", {"modelId": "demo", "prompt": "x", "adapter": "captain@²"}, (400,)),
        ("POST", "/inference", {"modelId": "demo", "prompt": "x", "adapter": f"captain@{'9' * 20}"}, (400,)),
        ("GET", "/training/status/a%00b", None, (404,)),
        ("GET", "/inference/%ff%fe", None, (404,)),
        ("DELETE", "/adapters/a%00b", None, (404,)),
        ("GET", "/training/list?limit=%C2%B2", None, (400,)),
        ("GET", "/models/%00", None, (404,)),
    ],
)
def test_06_odd_versions_and_ids(
    client: Client, method: str, path: str, body: object, statuses: tuple[int, ...]
) -> None:
    answer = client.request(method, f"{client.native}/api/v1{path}", json=body)
    assert answer.status_code in statuses, answer.text


@pytest.mark.parametrize("field", ["modelId", "adapter", "workerHint"])
def test_a_nul_in_a_name_is_named(client: Client, field: str) -> None:
    [problem] = details(client.infer(**{field: "a\0b"}))
    assert (problem["type"], problem["field"]) == ("invalid_text", field)


def test_whole_characters_come_out(client: Client, product: Stack) -> None:
    """Emoji of several code points, combining marks and CJK go in and come back unbroken, whatever chunks hold."""
    prompt = "👩‍👩‍👧‍👦 é 你好 \U0001f1e9\U0001f1ea"
    answer = client.infer(prompt=prompt, generation={"maxNewTokens": 40, "temperature": 2.0})
    assert answer.status_code == 200
    answer.json()["choices"][0]["text"].encode()
    with client._http.stream(
        "POST", f"{client.native}/api/v1/inference/stream", json={"modelId": "demo", "prompt": prompt}
    ) as stream:
        for line in stream.iter_lines():
            line.encode("utf-8")
