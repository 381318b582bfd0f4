"""What operators write of models while the service runs: values over the file, clashes, refusals, two at once."""

import json
import threading

import httpx
import pytest

from store.principal import Scope
from store.sql import db
from store.sql.api_keys import ApiKeyStore
from store.sql.models import ModelStore
from testing.stack import Stack
from testing.waiting import until
from tests.integration.live_models import FAKE, Control, ask, becomes, http, stack

__all__ = ["http", "stack"]


def test_values_over_the_model_file(stack: Stack, http: httpx.Client) -> None:
    before = http.get("/models/fake").json()
    changed = http.patch("/models/fake", json={"defaultMaxTokens": 3, "name": None})
    assert changed.status_code == 200, changed.text
    assert changed.json()["overrides"] == {"default_max_tokens": 3, "name": None}
    assert changed.json()["name"] == "fake" and before["name"] == "Fake"
    # What it is loaded with is shown to be old.
    assert changed.json()["workers"][0]["outdated"] is True
    seen = changed.json()["revision"]
    assert http.patch("/models/fake", json={"name": "A"}, headers={"If-Match": str(seen)}).status_code == 200
    late = http.patch("/models/fake", json={"name": "B"}, headers={"If-Match": str(seen)})
    assert late.status_code == 409 and "somebody else" in late.json()["error"]["message"]
    assert http.post("/models/fake/reset").json()["name"] == "Fake"
    assert "outdated" not in http.get("/models/fake").json()["workers"][0]


def test_what_cannot_be_done_says_why(stack: Stack, http: httpx.Client) -> None:
    def refusal(answer: httpx.Response) -> tuple[int, str]:
        return answer.status_code, answer.json()["error"]["details"][0]["type"]

    assert refusal(http.delete("/models/fake")) == (409, "in_model_file")
    assert refusal(http.post("/models/nothing/load")) == (404, "model_not_found")
    assert refusal(http.post("/models/fake/load", json={"worker": "w9@test"})) == (400, "unknown_worker")
    assert refusal(http.post("/models/fake/unload", json={"force": "yes"}))[0] == 400
    http.post("/models", json={"id": "extra", **FAKE})
    assert refusal(http.post("/models/extra/reset")) == (409, "not_in_file")
    # An engine that cannot start is told with its reason; the others go on.
    broken = {"id": "broken", "modelPath": "acme/nothing", "load": True}
    assert http.post("/models", json=broken).status_code == 201
    becomes(http, "broken", "failed", 60)
    [worker] = http.get("/models/broken").json()["workers"]
    assert worker["reason"] and worker["since"]
    assert ask(http, "fake").status_code == 200
    assert http.delete("/models/broken").status_code == 202


def test_two_operators_at_once(stack: Stack, http: httpx.Client) -> None:
    results: list[int] = []

    def add() -> None:
        with stack.http() as mine:
            results.append(mine.post("/models", json={"id": "extra", **FAKE}).status_code)

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [201, *[409] * 5]


def test_two_changes_at_once_both_count(stack: Stack, http: httpx.Client) -> None:
    def change(key: str) -> None:
        with stack.http() as mine:
            assert mine.patch("/models/fake", json={key: 7}).status_code in (200, 409)

    threads = [
        threading.Thread(target=change, args=(key,)) for key in ("maxPending", "defaultMaxTokens", "chunkMergeMs")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = {row.id: row.entry for row in ModelStore(db.sessions(db.connect(stack.database_url))).state().entries}
    assert http.get("/models/fake").json()["overrides"] == written["fake"]
    assert written["fake"] == {"max_pending": 7, "default_max_tokens": 7, "chunk_merge_ms": 7}


def test_what_a_fake_was_given_is_no_way_around_the_folders(http: httpx.Client) -> None:
    assert http.post("/models", json={**FAKE, "id": "x", "modelPath": "/etc"}).status_code == 400
    assert http.patch("/models/fake", json={"modelPath": "/etc"}).status_code == 400
    body = {"id": "x", **FAKE, "foo": None}
    assert http.post("/models", json=body).status_code == 201
    assert http.patch("/models/x", json={"chatTemplate": "/etc/passwd"}).status_code == 400
    assert http.delete("/models/x").status_code == 202
    # Loaded at once, but nowhere: nothing is written.
    refused = http.post("/models", json={"id": "y", **FAKE, "load": True, "worker": "w9@test"})
    assert refused.status_code == 400 and http.get("/models/y").status_code == 404


def test_the_model_file_wins_a_clash_of_names(stack: Stack, http: httpx.Client) -> None:
    stack.start_grpc()
    http.post("/models", json={"id": "extra", **FAKE})
    document = json.loads(stack.config.read_text())
    document["models"]["extra"] = {"model_path": "none", "engine": "fake", "name": "From the file"}
    stack.config.write_text(json.dumps(document))
    client = Control(stack)
    with pytest.raises(Exception, match="was added by an operator"):
        client("reload_registry")
    assert http.get("/models/extra").json()["origin"] == "api"
    assert http.delete("/models/extra").status_code == 202
    assert "extra" in client("reload_registry")["models"]
    until(lambda: http.get("/models/extra").json().get("name") == "From the file", 3, "the front door has read it")


def test_only_operators_may(stack: Stack) -> None:
    key = ApiKeyStore(db.sessions(db.connect(stack.database_url))).add("reader", [Scope.INFERENCE, Scope.TRAINING])
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=f"{stack.base}/api/v1", headers=headers, trust_env=False) as client:
        for method, path in (("POST", "/models"), ("PATCH", "/models/fake"), ("DELETE", "/models/fake")):
            assert client.request(method, path, json={}).status_code == 403
        for action in ("load", "unload", "reset"):
            assert client.post(f"/models/fake/{action}").status_code == 403
        assert client.get("/models/fake/history").status_code == 403
        # Who may ask a model sees its status, and neither the workers nor their reasons.
        assert (
            "workers" not in client.get("/models/fake").json() and "overrides" not in client.get("/models/fake").json()
        )


def test_a_model_that_is_needed_is_not_removed(stack: Stack, http: httpx.Client) -> None:
    http.post("/models", json={"id": "extra", **FAKE, "enableLora": True})
    _add_adapter(stack, "mine", "extra")
    refused = http.delete("/models/extra")
    assert refused.status_code == 409 and "adapter mine@1" in refused.text
    assert http.delete("/models/extra?force=true").status_code == 202


def _add_adapter(stack: Stack, name: str, model: str) -> None:
    from store.sql.tables import Adapter

    with db.sessions(db.connect(stack.database_url)).begin() as session:
        session.add(
            Adapter(
                name=name, version=1, base_model=model, path=f"{name}/1", rank=8, checksum="0", job_id="", metrics={}
            )
        )
