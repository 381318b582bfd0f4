"""One tenant tries everything that it can name on another's things: each answer is that for a thing that never was.

Compared word by word with the answer for an id that nobody has, so that nothing tells that another tenant's exists.
"""

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from settings import ROOT
from store.redis.responses import ResponseStore, StoredResponse
from store.sql import db
from store.sql.tables import Adapter, AdapterAlias
from testing.faces import Answer, Call, Grpc
from testing.sse import events
from testing.stack import Stack
from testing.waiting import until
from testing.websocket import receive, send, socket
from tests.conftest import FAKE_MODELS

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
#: What a rule calls a thing -> which of the victim's things it is.
PLACES = {
    "request_id": "request",
    "answer_id": "answer",
    "response_id": "response",
    "file_id": "file",
    "upload_id": "upload",
    "batch_id": "batch",
    "job_id": "job",
    "key_id": "key",
    "ref": "adapter",
    "model_id": "model",
}
#: Bodies that get beyond a route's checks of its form.
BODIES: tuple[dict[str, Any], ...] = ({}, {"version": 1}, {"part_ids": ["part_1"]}, {"name": "mine"})


@dataclass
class Victim:
    """The other tenant, and what it has: kind of thing -> its id."""

    tenant: str
    key: str
    things: dict[str, str] = field(default_factory=dict)


@dataclass
class Scene:
    stack: Stack
    victim: Victim
    attacker: str
    http: httpx.Client
    tries: int = 0

    def ask(self, method: str, url: str, **options: Any) -> httpx.Response:
        self.tries += 1
        return self.http.request(method, url, **options)


def client(key: str) -> httpx.Client:
    return httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("escapes")
    env = {"CY_LLM_ADAPTERS_ROOT": str(folder / "adapters"), "CY_LLM_OUTPUTS_ROOT": str(folder / "out")}
    models = {**FAKE_MODELS, "models": {**FAKE_MODELS["models"], "lora": _LORA, "demo": _DEMO}}  # type: ignore[dict-item]
    stack = Stack(folder / "stack", models, env=env)
    try:
        stack.start_worker("w1", ["--models", "fake,slow,lora"])
        stack.start_web()
        stack.start_grpc()
        keys = [_make_key(stack, tenant) for tenant in ("victim", "attacker")]
        victim = Victim("victim", keys[0]["key"], {"key": keys[0]["id"]})
        _furnish(stack, victim)
        with client(keys[1]["key"]) as http:
            yield Scene(stack, victim, keys[1]["key"], http)
    finally:
        stack.close()


_DEMO = {"model_path": str(ROOT / "models" / "demo"), "enableLora": True, "maxLoraRank": 16}
_LORA = {"model_path": "none", "engine": "fake", "enableLora": True}


def _make_key(stack: Stack, tenant: str) -> dict[str, Any]:
    body = {"name": "app", "tenant": tenant, "scopes": ["inference", "openai", "training"]}
    with stack.http() as http:
        made: dict[str, Any] = http.post("/keys", json=body).raise_for_status().json()
    return made


def _furnish(stack: Stack, victim: Victim) -> None:
    """Give the victim one of everything."""
    things = victim.things
    with client(victim.key) as http:
        body = {"modelId": "fake", "prompt": "the victim's words", "generation": {"maxNewTokens": 5}}
        things["request"] = http.post(f"{stack.base}/api/v1/inference", json=body).raise_for_status().json()["id"]
        chat = {"model": "fake", "messages": [{"role": "user", "content": "secret"}], "max_tokens": 5, "stream": True}
        with http.stream("POST", f"{stack.openai_base}/chat/completions", json=chat) as stream:
            things["answer"] = next(event.json()["id"] for event in events(stream) if event.data.startswith("{"))
        file = {"file": ("secret.jsonl", _BATCH.encode())}
        made = http.post(f"{stack.openai_base}/files", files=file, data={"purpose": "batch"}).raise_for_status().json()
        things["file"] = made["id"]
        upload = {"filename": "u.jsonl", "purpose": "batch", "bytes": 10, "mime_type": "application/jsonl"}
        made = http.post(f"{stack.openai_base}/uploads", json=upload).raise_for_status().json()
        things["upload"] = made["id"]
        rows = {"file": ("rows.jsonl", "\n".join([_ROW] * 11).encode())}
        made = (
            http.post(f"{stack.openai_base}/files", files=rows, data={"purpose": "fine-tune"}).raise_for_status().json()
        )
        tuning = {"model": "demo", "training_file": made["id"]}
        made = http.post(f"{stack.openai_base}/fine_tuning/jobs", json=tuning)
        assert made.status_code == 200, made.text
        things["job"] = made.json()["id"]
        batch = {"input_file_id": things["file"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        things["batch"] = http.post(f"{stack.openai_base}/batches", json=batch).raise_for_status().json()["id"]
    things["response"] = f"resp_{secrets.token_hex(12)}"
    outline = {"id": things["response"], "object": "response", "status": "completed", "output": []}
    stored = StoredResponse(things["response"], victim.tenant, things["request"], [], 0, outline, outline)
    ResponseStore(stack.client, 3600, 100).begin(stored)
    things["adapter"] = "secretive@1"
    things["model"] = "ft:lora:org:secretive:abcdef12"
    engine = db.connect(stack.database_url)
    with db.sessions(engine).begin() as session:
        whose = {"name": "secretive", "version": 1, "tenant": victim.tenant}
        session.add(
            Adapter(
                **whose, base_model="lora", path="secretive/1", rank=8, checksum="0" * 64, model_name=things["model"]
            )
        )
        session.add(AdapterAlias(**whose))
    engine.dispose()


_ROW = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
_BATCH = json.dumps(
    {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "fake", "messages": [{"role": "user", "content": "secret"}]},
    }
)


def never_was(thing: str) -> str:
    """An id of the same form that nobody has."""
    if thing == "secretive@1":
        return "nobodies0@1"
    return re.sub(r"[0-9a-f]{8,}", lambda found: secrets.token_hex(len(found[0]))[: len(found[0])], thing)


def comparable(answer: httpx.Response, thing: str) -> tuple[int, str]:
    """An answer without the id that was asked for, and what differs from call to call."""
    text = answer.text
    for word in (thing, thing.partition("@")[0]):
        text = text.replace(word, "IT")
    return answer.status_code, re.sub(r"req_[0-9a-f]{24}", "CALL", text)


def rules(stack: Stack) -> set[str]:
    """Every rule of both ports, as an unknown path's answer lists them."""
    found: set[str] = set()
    with stack.http() as http:
        for base in (stack.base, f"http://127.0.0.1:{stack.openai_port}"):
            for path in ("/api/v1/none", "/v1/none", "/none"):
                message = http.get(f"{base}{path}").json()["error"]["message"]
                found.update(rule.strip() for rule in message.partition("What there is:")[2].split(","))
    return {rule for rule in found if "{" in rule}


def test_every_route_with_another_tenants_id(scene: Scene) -> None:
    known = rules(scene.stack)
    assert len(known) > 25
    before = scene.tries
    for rule in sorted(known):
        [place] = re.findall(r"\{(\w+)\}", rule)
        kinds = ["adapter", "model"] if place == "name" else [PLACES[place]]
        base = f"http://127.0.0.1:{scene.stack.openai_port}" if not rule.startswith("/api/") else scene.stack.base
        for kind in kinds:
            theirs = scene.victim.things[kind]
            theirs = theirs.partition("@")[0] if place == "name" else theirs
            nobodys = never_was(theirs) if theirs != "secretive" else "nobodies0"
            for method in METHODS:
                for body in BODIES if method in ("POST", "PUT", "PATCH") else (None,):
                    answers = []
                    for thing in (theirs, nobodys):
                        url = base + rule.replace(f"{{{place}}}", thing)
                        answers.append(comparable(scene.ask(method, url, json=body), thing))
                    assert answers[0] == answers[1], (method, rule, body)
                    assert answers[0][0] in (400, 403, 404, 405), (method, rule, answers[0])
    assert scene.tries - before >= 200


def references(scene: Scene) -> list[tuple[str, str, dict[str, Any], str]]:
    """Kind of thing, path, a body that names it as ``IT``, port."""
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
    train = {"baseModel": "lora", "outputDir": "out", "datasetPath": "IT"}
    return [
        ("adapter", "/v1/chat/completions", {"model": "IT", **chat}, "openai"),
        ("model", "/v1/chat/completions", {"model": "IT", **chat}, "openai"),
        ("adapter", "/v1/completions", {"model": "IT", "prompt": "x"}, "openai"),
        ("adapter", "/v1/messages", {"model": "IT", **chat}, "openai"),
        ("adapter", "/v1/responses", {"model": "IT", "input": "x"}, "openai"),
        ("response", "/v1/responses", {"model": "fake", "input": "x", "previous_response_id": "IT"}, "openai"),
        ("adapter", "/tokenize", {"model": "IT", "prompt": "x"}, "openai"),
        ("adapter", "/api/v1/inference", {"modelId": "lora", "prompt": "x", "adapter": "IT"}, "native"),
        ("adapter", "/api/v1/inference/stream", {"modelId": "lora", "prompt": "x", "adapter": "IT"}, "native"),
        ("file", "/api/v1/training/start", train, "native"),
        ("file", "/v1/fine_tuning/jobs", {"model": "lora", "training_file": "IT"}, "openai"),
        ("model", "/v1/fine_tuning/jobs", {"model": "IT", "training_file": "file-x"}, "openai"),
        (
            "file",
            "/v1/batches",
            {"input_file_id": "IT", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
            "openai",
        ),
    ]


def test_bodies_that_name_another_tenants_things(scene: Scene) -> None:
    for kind, path, body, port in references(scene):
        theirs = scene.victim.things[kind]
        base = scene.stack.base if port == "native" else f"http://127.0.0.1:{scene.stack.openai_port}"
        answers = []
        for thing in (theirs, never_was(theirs)):
            named = json.loads(json.dumps(body).replace("IT", thing))
            answers.append(comparable(scene.ask("POST", base + path, json=named), thing))
        assert answers[0] == answers[1], (path, body)
        assert 400 <= answers[0][0] < 500, (path, answers[0])


def test_lists_hold_nothing_of_another_tenant(scene: Scene) -> None:
    native, openai = f"{scene.stack.base}/api/v1", scene.stack.openai_base
    ids = [*scene.victim.things.values(), "secretive"]
    urls = [
        *(
            f"{native}/{path}"
            for path in ("training/list", "models", "adapters", "key", "usage?group=key,tenant,model")
        ),
        *(f"{native}/usage?{query}" for query in ("tenant=victim", f"key={scene.victim.things['key']}", "key=app")),
        f"{native}/usage?format=csv&group=tenant,key",
        *(f"{openai}/{path}" for path in ("models", "files", "batches", "fine_tuning/jobs")),
        *(
            f"{openai}/files?after={scene.victim.things['file']}",
            f"{openai}/batches?after={scene.victim.things['batch']}",
        ),
        f"{native}/training/list?status=queued&page=0&size=100",
    ]
    for url in urls:
        answer = scene.ask("GET", url)
        assert answer.status_code in (200, 400, 404), (url, answer.text)
        assert not [thing for thing in ids if thing in answer.text], (url, answer.text)
        assert "victim" not in answer.text, url
    for url in ("keys", "keys?tenant=victim", "tenants", "tenants/victim", "models/fake/history"):
        assert scene.ask("GET", f"{native}/{url}").status_code in (403, 404), url


def test_the_same_words_are_another_request(scene: Scene) -> None:
    """An idempotency key, and a name, are each tenant's own."""
    body = {"modelId": "fake", "prompt": "same", "generation": {"maxNewTokens": 3}}
    url, headers = f"{scene.stack.base}/api/v1/inference", {"Idempotency-Key": "order-1"}
    with client(scene.victim.key) as http:
        theirs = http.post(url, json=body, headers=headers).json()["id"]
    assert scene.ask("POST", url, json=body, headers=headers).json()["id"] != theirs
    other = scene.ask("POST", url, json={**body, "prompt": "other"}, headers={"Idempotency-Key": "order-2"})
    assert other.status_code == 200


def test_metadata_is_never_whose_bill_it_is(scene: Scene) -> None:
    def requests(key: str) -> int:
        with client(key) as http:
            total: int = http.get(f"{scene.stack.base}/api/v1/usage").json()["total"]["requests"]
        return total

    scene.stack.spawn_background()
    until(lambda: requests(scene.victim.key) >= 3, 30, "what the victim asked is booked")
    before, own = requests(scene.victim.key), requests(scene.attacker)
    body = {"modelId": "fake", "prompt": "x", "metadata": {"tenant": "victim"}, "generation": {"maxNewTokens": 3}}
    assert scene.ask("POST", f"{scene.stack.base}/api/v1/inference", json=body).status_code == 200
    chat = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "user": "victim"}
    assert scene.ask("POST", f"{scene.stack.openai_base}/chat/completions", json=chat).status_code == 200
    until(lambda: requests(scene.attacker) >= own + 2, 30, "both are booked on who asked")
    assert requests(scene.victim.key) == before


def test_sockets_and_grpc(scene: Scene) -> None:
    theirs = scene.victim.things["request"]
    with socket(scene.stack, scene.attacker) as ws:
        for thing in (theirs, never_was(theirs)):
            for kind in ("resume", "cancel"):
                send(ws, kind, id=thing, lastEventId="1-1")
                frame = receive(ws)
                while frame["type"] == "ready":
                    frame = receive(ws)
                assert (frame["type"], frame["status"]) == ("error", 404), frame
    grpc = Grpc(scene.stack)
    try:
        said = []
        for thing in (theirs, never_was(theirs)):
            answer = Answer()
            grpc.follow(Call(scene.attacker, resume=(thing, "1-1")), answer)
            said.append((answer.code, answer.text))
        assert said[0] == said[1]
        assert said[0][0] == "NOT_FOUND"
    finally:
        grpc.close()


def test_the_victim_has_all_that_it_had(scene: Scene) -> None:
    """Last: nothing was ended, taken or changed."""
    stack, things = scene.stack, scene.victim.things
    with client(scene.victim.key) as http:
        for url in (
            f"{stack.base}/api/v1/inference/{things['request']}",
            f"{stack.base}/api/v1/training/status/{things['job']}",
            f"{stack.openai_base}/files/{things['file']}/content",
            f"{stack.openai_base}/batches/{things['batch']}",
            f"{stack.openai_base}/responses/{things['response']}",
            f"{stack.openai_base}/models/{things['model']}",
        ):
            assert http.get(url).status_code == 200, url
        assert http.get(f"{stack.base}/api/v1/training/status/{things['job']}").json()["status"] == "queued"
        adapters = http.get(f"{stack.base}/api/v1/adapters").text
        assert "secretive" in adapters
    assert scene.tries >= 1000
