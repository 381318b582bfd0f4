"""Usage as clients and operators see it: through every door the same, whatever becomes of a request."""

import csv
import io
import json
import secrets
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from store.principal import ALL_SCOPES, Scope
from store.sql import db
from store.sql.api_keys import ApiKeyStore, NewKey
from store.sql.usage import UsageStore
from store.sql.usage_tables import UsageRecord
from testing.faces import Call, GrpcSeed
from testing.sse import Event, events
from testing.stack import Stack
from testing.waiting import until
from testing.websocket import receive, socket, start, until_done
from tests.conftest import FAKE_MODELS

Totals = dict[str, int]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything that counts: both front doors, a worker, and who books."""
    stack = Stack(tmp_path_factory.mktemp("usage"), FAKE_MODELS, env={"CY_LLM_KEEPALIVE_SECONDS": "0.5"})
    try:
        stack.start_worker("w1", ["--models", "fake,slow,tiny"])
        stack.start_web()
        stack.start_grpc()
        stack.spawn_background()
        yield stack
    finally:
        stack.close()


class Caller:
    """A key of a tenant of its own, and what it has used by its own count."""

    def __init__(self, stack: Stack, name: str = "", tenant: str = "") -> None:
        self.stack = stack
        self.tenant = tenant or f"tenant-{secrets.token_hex(4)}"
        engine = db.connect(stack.database_url)
        wanted = NewKey(name or secrets.token_hex(4), ALL_SCOPES - {Scope.ADMIN}, self.tenant)
        row, self.key = ApiKeyStore(db.sessions(engine)).make(wanted)
        engine.dispose()
        self.key_id, self.name = row.id, row.name

    def http(self) -> httpx.Client:
        headers = {"X-API-Key": self.key}
        return httpx.Client(base_url=f"{self.stack.base}/api/v1", headers=headers, timeout=60, trust_env=False)

    def usage(self, **query: str) -> Any:
        with self.http() as http:
            answer = http.get("/usage", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def booked(self, requests: int) -> Totals:
        """What is booked once so many requests are."""
        found: Totals = {}

        def all_there() -> bool:
            found.update(self.usage()["total"])
            return found["requests"] >= requests

        until(all_there, 20, f"{requests} requests are booked")
        assert found["requests"] == requests
        return found


@pytest.fixture
def caller(stack: Stack) -> Caller:
    return Caller(stack)


def record_of(stack: Stack, request_id: str) -> UsageRecord | None:
    engine = db.connect(stack.database_url)
    try:
        return UsageStore(db.sessions(engine)).record(request_id)
    finally:
        engine.dispose()


def closed(stack: Stack, request_id: str, outcome: str) -> UsageRecord:
    found: list[UsageRecord] = []

    def is_there() -> bool:
        record = record_of(stack, request_id)
        if record is not None and record.outcome == outcome:
            found.append(record)
        return bool(found)

    until(is_there, 20, f"{request_id} is booked as {outcome}")
    return found[0]


def data_of(response: httpx.Response) -> Iterator[Event]:
    """The events of a stream, without comments."""
    return (event for event in events(response) if event.data)


def body(prompt: str = "one two three", tokens: int = 7, model: str = "fake", **more: Any) -> dict[str, Any]:
    return {"modelId": model, "prompt": prompt, "generation": {"maxNewTokens": tokens}, **more}


def test_every_door_counts_the_same(stack: Stack, caller: Caller) -> None:
    native = 3
    with caller.http() as http:
        whole = http.post("/inference", json=body()).json()
        assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
        with http.stream("POST", "/inference/stream", json=body()) as stream:
            stream.read()
    with socket(stack, caller.key) as ws:
        receive(ws)
        start(ws, "r", "one two three", 7)
        until_done(ws)
    rpc = GrpcSeed(stack)
    assert rpc.ask(Call(key=caller.key, model="fake", prompt="one two three", tokens=7)).code == ""
    rpc.close()
    with stack.openai(caller.key) as sdk:
        messages: Any = [{"role": "user", "content": "one two three"}]
        chat = sdk.chat.completions.create(model="fake", messages=messages, max_tokens=7)
        assert chat.usage is not None
        for options in ({}, {"stream_options": {"include_usage": True}}):
            chunks: Any = sdk.chat.completions.create(
                model="fake", messages=messages, max_tokens=7, stream=True, **options
            )
            counts = [chunk.usage for chunk in chunks if chunk.usage is not None]
            # Who did not ask for it sees none.
            assert bool(counts) == bool(options)
        completion = sdk.completions.create(model="fake", prompt="one two three", max_tokens=7)
        assert completion.usage is not None
    total = caller.booked(native + 1 + 4)
    prompts = (native + 1) * 3 + 3 * chat.usage.prompt_tokens + completion.usage.prompt_tokens
    assert (total["completionTokens"], total["promptTokens"]) == (8 * 7, prompts)
    assert total["totalTokens"] == 8 * 7 + prompts
    by_endpoint = {row["endpoint"]: row["requests"] for row in caller.usage(group="endpoint")["rows"]}
    assert by_endpoint == {"/api/v1/inference": 4, "/v1/chat/completions": 3, "/v1/completions": 1}
    by_model = {row["model"]: row["requests"] for row in caller.usage(group="model")["rows"]}
    # The socket's helper asks the slow one.
    assert by_model == {"fake": 7, "slow": 1}
    [row] = caller.usage(group="tenant,key")["rows"]
    assert (row["tenant"], row["key"], row["keyName"]) == (caller.tenant, caller.key_id, caller.name)


def test_a_client_that_leaves_pays_for_what_was_made(stack: Stack, caller: Caller) -> None:
    with caller.http() as http:
        with http.stream("POST", "/inference/stream", json=body(tokens=400, model="slow")) as stream:
            found = data_of(stream)
            request_id = json.loads(next(found).data)["id"]
            for _ in range(5):
                next(found)
        released = closed(stack, request_id, "released")
        state = http.get(f"/inference/{request_id}").json()
        assert (state["state"], state["usage"]["completion_tokens"]) == ("paused", released.completion_tokens)
        assert 6 <= released.completion_tokens < 100
        assert released.prompt_tokens == 3
        # It comes back, and it is one request: with the tokens of both parts.
        http.get(f"/inference/{request_id}/stream", params={"lastEventId": state["lastEventId"]})
    finished = closed(stack, request_id, "finished")
    assert (finished.completion_tokens, finished.prompt_tokens, finished.attempts) == (400, 3, 2)
    assert caller.booked(1)["completionTokens"] == 400


def test_a_client_of_v1_that_leaves_pays_for_what_was_made(stack: Stack, caller: Caller) -> None:
    with stack.openai(caller.key) as sdk:
        messages: Any = [{"role": "user", "content": "one two three"}]
        chunks = sdk.chat.completions.create(model="slow", messages=messages, max_tokens=400, stream=True)
        for number, chunk in enumerate(chunks):
            answer_id = chunk.id
            if number == 5:
                break
        chunks.close()
    record = closed(stack, f"gen-{answer_id.removeprefix('chatcmpl-')}", "released")
    assert 4 <= record.completion_tokens < 100
    assert record.prompt_tokens > 0


def test_a_cancelled_request_pays_what_its_answer_says(stack: Stack, caller: Caller) -> None:
    with (
        caller.http() as http,
        http.stream("POST", "/inference/stream", json=body(tokens=400, model="slow")) as stream,
    ):
        found = data_of(stream)
        request_id = json.loads(next(found).data)["id"]
        next(found)
        http.post(f"/inference/{request_id}/cancel")
        assert list(found)[-1].data == "[DONE]"
        usage = http.get(f"/inference/{request_id}").json()["usage"]
    record = closed(stack, request_id, "cancelled")
    assert (record.prompt_tokens, record.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert 0 < record.completion_tokens < 400


def test_what_the_engine_refuses_costs_nothing(caller: Caller) -> None:
    with caller.http() as http:
        refused = http.post("/inference", json=body(prompt="word " * 100, tokens=5, model="tiny"))
    assert refused.status_code == 400
    total = caller.booked(1)
    assert total["totalTokens"] == 0


def test_a_request_whose_worker_is_killed_counts_once(own_stack: Stack) -> None:
    own_stack.start_web()
    own_stack.spawn_background()
    first = own_stack.start_worker("a", ["--models", "slow"])
    caller = Caller(own_stack)
    with caller.http() as http, http.stream("POST", "/inference/stream", json=body(tokens=80, model="slow")) as stream:
        found = data_of(stream)
        request_id = json.loads(next(found).data)["id"]
        own_stack.start_worker("b", ["--models", "slow"])
        first.signal(signal.SIGKILL)
        assert list(found)[-1].data == "[DONE]"
    record = closed(own_stack, request_id, "finished")
    assert (record.prompt_tokens, record.completion_tokens, record.attempts) == (3, 80, 2)
    assert caller.booked(1)["completionTokens"] == 80


def test_one_tenant_sees_nothing_of_another(stack: Stack, caller: Caller) -> None:
    other = Caller(stack)
    with other.http() as http:
        http.post("/inference", json=body(metadata={"tenant": caller.tenant}))
    # What a client says of itself is never whose bill it is.
    assert other.booked(1)["completionTokens"] == 7
    for query in ({}, {"tenant": other.tenant}, {"key": other.key_id}, {"key": other.name}, {"group": "tenant,key"}):
        answer = caller.usage(**query)
        assert (answer["rows"] if query.get("group") else answer["total"]["requests"]) in (0, [])
        assert other.tenant not in json.dumps(answer["rows"])
    with stack.http() as operator:
        found = operator.get("/usage", params={"group": "tenant"}).json()["rows"]
        assert other.tenant in [row["tenant"] for row in found]
        only = operator.get("/usage", params={"tenant": other.tenant}).json()
        assert only["total"]["requests"] == 1


def test_a_table_for_a_spreadsheet(stack: Stack) -> None:
    tenant = f"=tenant-{secrets.token_hex(4)}"
    names = ["=1+1", "@x", "-5", 'a,"b"', "客服"]
    for name in names:
        with Caller(stack, name, tenant).http() as http:
            http.post("/inference", json=body())
    with stack.http() as operator:
        until(
            lambda: operator.get("/usage", params={"tenant": tenant}).json()["total"]["requests"] == 5, 20, "all booked"
        )
        answer = operator.get("/usage", params={"tenant": tenant, "group": "tenant,key", "format": "csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.content.startswith(b"\xef\xbb\xbf")
    head, *rows = csv.reader(io.StringIO(answer.content.decode("utf-8-sig"), newline=""))
    assert head[:4] == ["tenant", "key", "keyName", "requests"]
    assert {row[2] for row in rows} == {"'=1+1", "'@x", "'-5", 'a,"b"', "客服"}
    assert {tuple(row[:1] + row[3:]) for row in rows} == {(f"'{tenant}", "1", "3", "0", "7", "10", "UTC")}


def test_days_and_spans(caller: Caller) -> None:
    with caller.http() as http:
        http.post("/inference", json=body())
    caller.booked(1)
    now = datetime.now(UTC)
    today = now.date().isoformat()
    [row] = caller.usage(group="day")["rows"]
    assert row["day"] in (today, (now - timedelta(minutes=1)).date().isoformat())
    assert caller.usage(**{"from": row["day"], "to": row["day"]})["total"]["requests"] == 1
    assert caller.usage(to="2026-01-01")["total"]["requests"] == 0
    assert caller.usage(**{"from": (now + timedelta(days=2)).isoformat()})["total"]["requests"] == 0
    assert caller.usage(group="day", zone="Asia/Shanghai")["zone"] == "Asia/Shanghai"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"group": "colour"}, "group"),
        ({"zone": "Nowhere/City"}, "zone"),
        ({"zone": "../../etc/passwd"}, "zone"),
        ({"from": "yesterday"}, "from"),
        ({"to": "2026-13-01"}, "to"),
        ({"format": "xml"}, "format"),
    ],
)
def test_what_is_wrong_is_named(caller: Caller, query: dict[str, str], field: str) -> None:
    with caller.http() as http:
        refused = http.get("/usage", params=query)
    assert refused.status_code == 400, refused.text
    assert [detail["field"] for detail in refused.json()["error"]["details"]] == [field]
