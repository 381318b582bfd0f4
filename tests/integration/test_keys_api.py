"""Keys and tenants over HTTP: made by an operator, in force at every door within two seconds."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import openai
import pytest

from store.sql.authenticator import CACHE_SECONDS
from testing.stack import GATEWAY_TOKEN, Stack
from testing.waiting import until
from testing.websocket import receive, send, socket

#: A change is seen after this long at most; the rest is for a slow machine. Seconds.
SOON = CACHE_SECONDS + 5


@pytest.fixture
def tenant() -> str:
    return f"tenant-{secrets.token_hex(4)}"


@pytest.fixture
def operator(fake_stack: Stack) -> Iterator[httpx.Client]:
    with fake_stack.http() as http:
        yield http


Make = Callable[..., dict[str, Any]]


@pytest.fixture
def make(operator: httpx.Client, tenant: str) -> Make:
    """Make a key of a tenant of this test alone."""

    def make_key(**wanted: Any) -> dict[str, Any]:
        body = {"name": secrets.token_hex(4), "tenant": tenant, **wanted}
        answer = operator.post("/keys", json=body)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    return make_key


@contextmanager
def caller(stack: Stack, key: str) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=stack.base, headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False
    ) as http:
        yield http


def ask(stack: Stack, key: str, model: str = "fake", tokens: int = 3) -> httpx.Response:
    with caller(stack, key) as http:
        body = {"modelId": model, "prompt": "p", "generation": {"maxNewTokens": tokens}}
        return http.post("/api/v1/inference", json=body)


def chat(stack: Stack, key: str, model: str = "fake") -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "p"}], "max_tokens": 3}
    with caller(stack, key) as http:
        return http.post(f"{stack.openai_base}/chat/completions", json=body)


def test_a_key_from_its_making_to_its_end(fake_stack: Stack, operator: httpx.Client, make: Make, tenant: str) -> None:
    made = make(name="A Key", scopes=["inference"], requestsPerMinute=100, streams=5)
    key = made.pop("key")
    assert key.startswith(made["prefix"])
    assert (made["status"], made["models"], made["lastUsedAt"]) == ("active", None, None)
    assert ask(fake_stack, key).status_code == 200
    assert chat(fake_stack, key).status_code == 200
    [listed] = operator.get("/keys", params={"tenant": tenant}).json()["keys"]
    assert {**listed, "lastUsedAt": None} == made
    until(lambda: operator.get(f"/keys/{made['id']}").json()["lastUsedAt"] is not None, 15, "its use is noted")

    changed = operator.patch(f"/keys/{made['id']}", json={"requestsPerMinute": None, "scopes": ["openai"]}).json()
    assert (changed["requestsPerMinute"], changed["scopes"]) == (None, ["openai"])
    until(lambda: ask(fake_stack, key).status_code == 403, SOON, "a scope that was taken away is missed")
    assert chat(fake_stack, key).status_code == 200

    rotated = operator.post(f"/keys/{made['id']}/rotate", json={"overlapSeconds": 3600}).json()
    assert rotated["oldSecretUntil"] is not None
    assert chat(fake_stack, rotated["key"]).status_code == chat(fake_stack, key).status_code == 200

    revoked = operator.delete(f"/keys/{made['id']}").json()
    assert (revoked["status"], revoked["revokedAt"] is None) == ("revoked", False)
    for each in (key, rotated["key"]):
        until(lambda each=each: chat(fake_stack, each).status_code == 401, SOON, "a revoked key is refused")
    for again in (
        operator.patch(f"/keys/{made['id']}", json={"name": "x"}),
        operator.post(f"/keys/{made['id']}/rotate", json={}),
    ):
        assert again.status_code == 409
        assert again.json()["error"]["details"][0]["type"] == "key_revoked"
        assert f"'{made['name']}'" in again.json()["error"]["message"]
    assert operator.delete(f"/keys/{made['id']}").status_code == 200


def test_everybody_sees_their_own_key(fake_stack: Stack, make: Make, tenant: str) -> None:
    made = make(name="mine", scopes=["training"], models=["fake"], streams=3)
    with caller(fake_stack, made["key"]) as http:
        own = http.get("/api/v1/key").json()
    assert own == {
        "id": made["id"],
        "name": "mine",
        "tenant": tenant,
        "scopes": ["training"],
        "models": ["fake"],
        "requestsPerMinute": None,
        "streams": 3,
        "tokensPerMinute": None,
        "quota": None,
        "tenantLimits": {"requestsPerMinute": None, "streams": None, "tokensPerMinute": None, "quota": None},
        "used": [],
        "expiresAt": None,
    }
    with caller(fake_stack, GATEWAY_TOKEN) as http:
        assert http.get("/api/v1/key").json()["scopes"] == ["openai"]
    with caller(fake_stack, "cy-wrong") as http:
        assert http.get("/api/v1/key").status_code == 401


def test_only_operators_manage_keys(fake_stack: Stack, make: Make, tenant: str) -> None:
    made = make(scopes=["inference", "training", "openai"])
    with caller(fake_stack, made["key"]) as http:
        answers = [
            http.get("/api/v1/keys"),
            http.post("/api/v1/keys", json={"name": "more", "scopes": ["admin"]}),
            http.get(f"/api/v1/keys/{made['id']}"),
            http.patch(f"/api/v1/keys/{made['id']}", json={"scopes": ["admin"]}),
            http.post(f"/api/v1/keys/{made['id']}/rotate", json={}),
            http.delete(f"/api/v1/keys/{made['id']}"),
            http.get("/api/v1/tenants"),
            http.patch(f"/api/v1/tenants/{tenant}", json={"streams": 99}),
        ]
    assert [answer.status_code for answer in answers] == [403] * len(answers)
    assert all("'admin'" in answer.json()["error"]["message"] for answer in answers)
    with httpx.Client(base_url=fake_stack.base, trust_env=False) as nobody:
        assert nobody.get("/api/v1/keys").status_code == 401


def test_a_key_may_ask_for_its_models_alone(fake_stack: Stack, operator: httpx.Client, make: Make) -> None:
    made = make(models=["fake"])
    key = made["key"]
    assert ask(fake_stack, key).status_code == chat(fake_stack, key).status_code == 200
    for refused in (ask(fake_stack, key, "tiny"), chat(fake_stack, key, "tiny")):
        assert refused.status_code == 403
        assert "may not use 'tiny'; it may use: fake" in refused.json()["error"]["message"]
    with caller(fake_stack, key) as http:
        assert [row["id"] for row in http.get("/api/v1/models").json()["models"]] == ["fake"]
        assert [row["id"] for row in http.get(f"{fake_stack.openai_base}/models").json()["data"]] == ["fake"]
        assert http.get("/api/v1/models/tiny").status_code == 403
        training = http.post(
            "/api/v1/training/start", json={"baseModel": "tiny", "outputDir": "o", "datasetPath": "d.jsonl"}
        )
        assert (training.status_code, training.json()["error"]["details"][0]["field"]) == (403, "baseModel")
    operator.patch(f"/keys/{made['id']}", json={"models": ["tiny"]})
    until(lambda: ask(fake_stack, key).status_code == 403, SOON, "a model that was taken away is missed")
    assert ask(fake_stack, key, "tiny").status_code == 200


def test_an_open_socket_starts_only_what_its_key_may_now(fake_stack: Stack, operator: httpx.Client, make: Make) -> None:
    made = make(models=["fake"])
    request = {"modelId": "fake", "prompt": "p", "generation": {"maxNewTokens": 2}}
    with socket(fake_stack, made["key"]) as ws:
        assert receive(ws) == {"type": "ready"}

        def outcome() -> int:
            """Ask once more; return the status that it would have over HTTP."""
            send(ws, "start", request=request)
            while True:
                frame = receive(ws)
                if frame["type"] in ("done", "error"):
                    return int(frame.get("status", 200))

        assert outcome() == 200
        operator.patch(f"/keys/{made['id']}", json={"models": ["tiny"]})
        until(lambda: outcome() == 403, SOON, "a model that was taken away is missed")
        operator.delete(f"/keys/{made['id']}")
        until(lambda: outcome() == 401, SOON, "a revoked key is refused")


def test_what_runs_under_a_revoked_key_ends_within_two_seconds(
    fake_stack: Stack, operator: httpx.Client, make: Make
) -> None:
    made = make()
    native = {"modelId": "slow", "prompt": "p", "generation": {"maxNewTokens": 400}}
    with (
        caller(fake_stack, made["key"]) as http,
        http.stream("POST", "/api/v1/inference/stream", json=native) as stream,
        fake_stack.openai(made["key"]) as sdk,
    ):
        chunks = sdk.chat.completions.create(
            model="slow", messages=[{"role": "user", "content": "p"}], max_tokens=400, stream=True
        )
        lines = stream.iter_lines()
        assert next(lines)
        assert next(iter(chunks))
        operator.delete(f"/keys/{made['id']}")
        # Twenty tokens a second: twenty seconds were left.
        began = time.monotonic()
        assert "UNAUTHORIZED" in "".join(lines)
        with pytest.raises(openai.APIError, match="API key"):
            for _ in chunks:
                pass
    assert time.monotonic() - began < SOON


def test_a_key_ends_on_time(fake_stack: Stack, make: Make) -> None:
    ends = datetime.now(UTC) + timedelta(seconds=4)
    made = make(expiresAt=ends.isoformat())
    assert ask(fake_stack, made["key"]).status_code == 200
    until(lambda: datetime.now(UTC) > ends, 10, "its time is over")
    # No remembered answer lets it in for longer.
    assert ask(fake_stack, made["key"]).status_code == 401


def test_a_refused_stream_costs_none_of_the_minutes_requests(fake_stack: Stack, make: Make) -> None:
    key = make(requestsPerMinute=2, streams=1)["key"]
    body = {"modelId": "slow", "prompt": "p", "generation": {"maxNewTokens": 40}}
    with caller(fake_stack, key) as http:
        with http.stream("POST", "/api/v1/inference/stream", json=body) as first:
            lines = first.iter_lines()
            assert next(lines)
            for refused in (ask(fake_stack, key), chat(fake_stack, key)):
                assert refused.status_code == 429
                assert "may have 1 requests running at once" in refused.text
                assert int(refused.headers["Retry-After"]) > 0
            assert list(lines)
        assert ask(fake_stack, key).status_code == 200
        last = ask(fake_stack, key)
    assert last.status_code == 429
    assert "may send 2 requests a minute" in last.json()["error"]["message"]
    assert 0 < int(last.headers["Retry-After"]) <= 60


def test_a_tenants_keys_share_its_limits_and_its_fate(
    fake_stack: Stack, operator: httpx.Client, make: Make, tenant: str
) -> None:
    first, second = (make()["key"] for _ in range(2))
    answer = operator.patch(f"/tenants/{tenant}", json={"requestsPerMinute": 3}).json()
    limits = {"requestsPerMinute": 3, "streams": None, "tokensPerMinute": None, "quota": None}
    assert answer == {"name": tenant, "blocked": False, **limits}
    codes = [ask(fake_stack, key).status_code for key in (first, second, first)]
    assert codes == [200] * 3
    refused = ask(fake_stack, second)
    assert refused.status_code == 429
    assert f"Tenant '{tenant}' may send 3 requests a minute" in refused.json()["error"]["message"]
    operator.patch(f"/tenants/{tenant}", json={"requestsPerMinute": None})
    until(lambda: ask(fake_stack, second).status_code == 200, SOON, "a limit that was taken away is gone")

    body = {"modelId": "slow", "prompt": "p", "generation": {"maxNewTokens": 400}}
    with caller(fake_stack, first) as http, http.stream("POST", "/api/v1/inference/stream", json=body) as stream:
        lines = stream.iter_lines()
        assert next(lines)
        operator.patch(f"/tenants/{tenant}", json={"blocked": True})
        # What runs ends, long before its text would.
        assert "UNAUTHORIZED" in "".join(lines)
    until(lambda: ask(fake_stack, second).status_code == 401, SOON, "a blocked tenant's keys are refused")
    assert operator.get(f"/tenants/{tenant}").json()["blocked"] is True
    assert tenant in [row["name"] for row in operator.get("/tenants").json()["tenants"]]
    operator.patch(f"/tenants/{tenant}", json={"blocked": False})
    until(lambda: ask(fake_stack, second).status_code == 200, SOON, "they are let in again")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": " "}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "n", "scopes": ["everything"]}, "scopes.0"),
        ({"name": "n", "scopes": []}, "scopes"),
        ({"name": "n", "models": "fake"}, "models"),
        ({"name": "n", "requestsPerMinute": -1}, "requestsPerMinute"),
        ({"name": "n", "streams": "2"}, "streams"),
        ({"name": "n", "expiresAt": "tomorrow"}, "expiresAt"),
        ({"name": "n", "expiresAt": "2020-01-01T00:00:00Z"}, "expiresAt"),
        ({"name": "n", "tenant": ""}, "tenant"),
        ({"name": "n", "key": "mine"}, "key"),
    ],
)
def test_what_is_wrong_is_named(operator: httpx.Client, body: dict[str, Any], field: str) -> None:
    refused = operator.post("/keys", json=body)
    assert refused.status_code == 400, refused.text
    assert [detail["field"] for detail in refused.json()["error"]["details"]] == [field]


def test_what_cannot_be_is_told(operator: httpx.Client, make: Make) -> None:
    made = make(name="once")
    taken = operator.post("/keys", json={"name": "once", "tenant": made["tenant"]})
    assert (taken.status_code, taken.json()["error"]["details"][0]["type"]) == (409, "name_taken")
    other = make(name="twice")
    taken = operator.patch(f"/keys/{other['id']}", json={"name": "once"})
    assert (taken.status_code, taken.json()["error"]["details"][0]["type"]) == (409, "name_taken")
    for answer in (
        operator.get("/keys/nobody"),
        operator.patch("/keys/nobody", json={"name": "x"}),
        operator.delete("/keys/nobody"),
        operator.post("/keys/nobody/rotate", json={}),
    ):
        assert answer.status_code == 404
        assert answer.json()["error"]["details"][0]["type"] == "key_not_found"
    rotate = operator.post(f"/keys/{made['id']}/rotate", json={"overlapSeconds": 10**9})
    assert (rotate.status_code, rotate.json()["error"]["details"][0]["field"]) == (400, "overlapSeconds")


def test_names_of_another_tenant_are_free(operator: httpx.Client, make: Make) -> None:
    made = make(name="ci")
    other = operator.post("/keys", json={"name": "ci", "tenant": f"{made['tenant']}-2"})
    assert other.status_code == 201
