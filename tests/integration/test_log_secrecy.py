"""No prompt, no answer and no key in any log of any process, whatever goes wrong, at any level."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from testing.faces import INFERENCE, Call
from testing.stack import KEY, Stack
from testing.websocket import socket
from tests.conftest import FAKE_MODELS

#: In every prompt, every wrong body and every wrong key of this test.
SECRET = f"zebra{secrets.token_hex(6)}"

pytestmark = pytest.mark.full


@pytest.fixture(scope="module", params=["INFO", "DEBUG"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("secrecy"), FAKE_MODELS, env={"CY_LLM_LOG_LEVEL": request.param})
    try:
        stack.start_worker("w1", ["--models", "fake,tiny"])
        stack.start_web()
        stack.start_grpc()
        stack.spawn_background()
        yield stack
    finally:
        stack.close()


def logs(stack: Stack) -> str:
    return "\n".join(path.read_text(errors="replace") for path in Path(stack.folder).glob("*.log"))


def test_no_prompt_answer_or_key_in_any_log(stack: Stack) -> None:
    with stack.http() as http:
        made = http.post("/keys", json={"name": secrets.token_hex(4)}).json()["key"]
    for kind in INFERENCE:
        face = kind(stack)
        for key in (made, f"cy-{SECRET}"):
            face.ask(Call(key, prompt=f"tell me of {SECRET}", tokens=5))
        face.ask(Call(made, prompt=f"{SECRET} " * 100, model="tiny"))
        if close := getattr(face, "close", None):
            close()
    headers = {"X-API-Key": made}
    with httpx.Client(headers=headers, trust_env=False, timeout=30) as http:
        for body in (
            f'{{"modelId": "fake", "prompt": "{SECRET}"',
            json.dumps({"modelId": "fake", "prompt": SECRET, "generation": {"temperature": SECRET}}),
            json.dumps({"modelId": "fake", "messages": [{"role": SECRET, "content": SECRET}]}),
            json.dumps({"model": "fake", "messages": [{"role": "user", "content": {"type": SECRET}}]}),
            json.dumps({"model": "fake", "messages": SECRET, "tools": [{"type": SECRET}]}),
            json.dumps({"model": "fake", "input": SECRET, "previous_response_id": "resp_none"}),
            SECRET,
        ):
            for url in (f"{stack.base}/api/v1/inference", f"{stack.base}/api/v1/inference/stream"):
                http.post(url, content=body, headers={"Content-Type": "application/json"})
            for path in ("chat/completions", "completions", "messages", "responses", "embeddings"):
                http.post(f"{stack.openai_base}/{path}", content=body, headers={"Content-Type": "application/json"})
        files = {"file": ("rows.jsonl", f'{{"prompt": "{SECRET}"}}'.encode())}
        http.post(f"{stack.openai_base}/files", files=files, data={"purpose": "fine-tune"})
    with socket(stack, made) as ws:
        ws.recv(timeout=10)
        ws.send(f'{{"type": "{SECRET}"')
        ws.recv(timeout=10)
    text = logs(stack)
    assert text.count("Answered") > 50
    for secret in (SECRET, made, made[10:30], KEY + '"'):
        assert secret not in text, next(line for line in text.splitlines() if secret in line)[:500]


def test_every_answer_says_what_may_be_done_with_it(stack: Stack) -> None:
    for path in ("/health", "/api/v1/models", "/nothing", "/api/v1/health"):
        headers = httpx.get(f"{stack.base}{path}", trust_env=False).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
