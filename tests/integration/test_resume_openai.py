"""A client of ``/v1`` that loses its stream and comes back for the rest."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from store.principal import Scope
from store.sql import db
from store.sql.api_keys import ApiKeyStore
from store.token_log.entries import Kind
from testing.fake_text import expected_text
from testing.stack import KEY, Stack
from testing.waiting import until

PROMPT, TOKENS = "go on", 60


@pytest.fixture
def http(fake_stack: Stack) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=fake_stack.openai_base, headers=headers, trust_env=False, timeout=60) as opened:
        yield opened


def body(**more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": PROMPT}]
    return {"model": "slow", "stream": True, "max_tokens": TOKENS, "messages": messages, **more}


def events_of(text: str) -> list[str]:
    return [event for event in text.split("\n\n") if event.startswith("data: ")]


def text_of(events: list[str]) -> str:
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def begin(http: httpx.Client, received: int) -> list[str]:
    """The first events of a stream whose client then leaves."""
    found: list[str] = []
    with http.stream("POST", "/chat/completions", json=body()) as answer:
        text = ""
        for part in answer.iter_text():
            text += part
            # What is behind the last line break may be half an event.
            found = events_of(text.rpartition("\n\n")[0])
            if len(found) >= received:
                break
    return found


def identity(events: list[str]) -> str:
    answer_id: str = json.loads(events[0].removeprefix("data: "))["id"]
    return answer_id


def last_entry(stack: Stack, answer_id: str) -> dict[bytes, bytes]:
    rows = stack.client.xrevrange(f"cy:log:gen-{answer_id.partition('-')[2]}", count=1)
    return dict(rows[0][1])


def is_released(stack: Stack, answer_id: str) -> bool:
    return last_entry(stack, answer_id)[b"k"].decode() == Kind.RELEASE


@pytest.mark.parametrize("how", ["received", "Last-Event-ID"])
def test_the_rest_comes_and_nothing_twice(fake_stack: Stack, http: httpx.Client, how: str) -> None:
    found = begin(http, 5)
    answer_id = identity(found)
    until(lambda: is_released(fake_stack, answer_id), 20, "its worker has let go of it")
    query, headers = ({"received": len(found)}, {}) if how == "received" else ({}, {how: str(len(found))})
    rest = http.get(f"/streams/{answer_id}", params=query, headers=headers)
    assert rest.headers["content-type"].startswith("text/event-stream")
    assert text_of([*found, *events_of(rest.text)]) == expected_text(PROMPT, TOKENS)
    # After its end it can be read again, from anywhere.
    for received in (0, 3, len(found)):
        again = http.get(f"/streams/{answer_id}", params={"received": received})
        whole = [*found, *events_of(rest.text)]
        assert events_of(again.text) == whole[received:]
    usage = json.loads(last_entry(fake_stack, answer_id)[b"d"])["usage"]
    assert usage["completion_tokens"] == TOKENS


def test_one_that_still_runs_is_followed(fake_stack: Stack, http: httpx.Client) -> None:
    """The first connection is still there: both get all."""
    with http.stream("POST", "/chat/completions", json=body()) as answer:
        parts = answer.iter_text()
        text = next(parts)
        while "\n\n" not in text:
            text += next(parts)
        second = http.get(f"/streams/{identity(events_of(text))}")
        text += "".join(parts)
    assert events_of(second.text) == events_of(text)
    assert text_of(events_of(text)) == expected_text(PROMPT, TOKENS)


def test_what_is_not_there(fake_stack: Stack, http: httpx.Client) -> None:
    whole = http.post("/chat/completions", json=body(stream=False, max_tokens=2)).json()["id"]
    for unknown in ("chatcmpl-none", "x", whole):
        refused = http.get(f"/streams/{unknown}")
        assert refused.status_code == 404, refused.text
        assert unknown in refused.json()["error"]["message"]
    for query, headers in (({"received": "x"}, {}), ({}, {"Last-Event-ID": "1-5"}), ({"received": "-1"}, {})):
        assert http.get(f"/streams/{whole}", params=query, headers=headers).status_code == 400


def test_another_tenant_s_does_not_exist(fake_stack: Stack, http: httpx.Client) -> None:
    answer = http.post("/chat/completions", json=body(max_tokens=3))
    answer_id = identity(events_of(answer.text))
    engine = db.connect(fake_stack.database_url)
    stranger = ApiKeyStore(db.sessions(engine)).add("stranger", [Scope.INFERENCE], "elsewhere")
    engine.dispose()
    assert http.get(f"/streams/{answer_id}").status_code == 200
    hidden = http.get(f"/streams/{answer_id}", headers={"Authorization": f"Bearer {stranger}"})
    assert hidden.status_code == 404
