"""Flower as the Procfile starts it: closed without its password, and with it what the workers do."""

import re
import shlex
from collections.abc import Iterator

import httpx
import pytest

from launcher.serve import procfile
from settings import ROOT
from testing.stack import Stack, free_port, script
from testing.waiting import until
from tests.conftest import FAKE_MODELS

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    stack = Stack(tmp_path_factory.mktemp("flower"), FAKE_MODELS)
    try:
        stack.start_worker("w1", ["--models", "fake"])
        port = free_port()
        words = shlex.split(procfile(ROOT / "Procfile")["flower"])
        command = [script("celery"), *(re.sub("--port=.*", f"--port={port}", word) for word in words[1:])]
        stack.run("flower", command, FLOWER_BASIC_AUTH="cy-llm:secret")
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            try:
                return httpx.get(url, trust_env=False).status_code == 401
            except httpx.TransportError:
                return False

        until(answers, 30, "Flower answers")
        yield url
    finally:
        stack.close()


def test_it_is_closed_without_the_password(flower: str) -> None:
    for path in ("/workers", "/api/workers", "/tasks"):
        assert httpx.get(f"{flower}{path}", trust_env=False).status_code == 401
        assert httpx.get(f"{flower}{path}", auth=("cy-llm", "wrong"), trust_env=False).status_code == 401


def test_a_workers_page_shows_its_engines(flower: str) -> None:
    with httpx.Client(base_url=flower, auth=("cy-llm", "secret"), trust_env=False, timeout=20) as http:
        until(lambda: "w1@test" in http.get("/api/workers", params={"refresh": "1"}).text, 30, "it knows the worker")
        stats = http.get("/api/workers").json()["w1@test"]["stats"]
        assert stats["engines"]["fake"]["running"] == 0
        page = http.get("/worker/w1@test")
        assert page.status_code == 200
        assert "engines" in page.text
