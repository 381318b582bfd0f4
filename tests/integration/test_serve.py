"""``bin/serve`` itself (behind its installing): start, banner, the printed curl line, kills, Ctrl-C, second run."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.redis_server import RedisServer
from launcher.supervisor import MAX_FAILED_STARTS
from settings import ROOT
from testing.fake_text import expected_text
from testing.processes import family, is_alive
from testing.served import ports, serving
from testing.waiting import until
from tests.conftest import require


def left_of(pids: list[int]) -> list[int]:
    return [pid for pid in pids if is_alive(pid)]


def test_it_serves_stops_and_serves_again(tmp_path: Path) -> None:
    require(shutil.which("curl") is not None, "curl is not installed")
    keys = set()
    for _ in range(2):
        with serving(tmp_path / "s", **ports()) as served:
            served.wait_for_banner()
            answer = served.answer()
            assert expected_text("你好，请介绍一下自己", 1).strip() in answer
            assert answer.endswith("data: [DONE]")
            keys.add(re.search(r"Key +(\S+)", served.output).group(1))  # type: ignore[union-attr]
            everything = family(served.process.pid)
            assert len(everything) >= 8
            assert served.interrupt() == 0
        assert "[cy-llm] stopped" in served.output
        assert left_of(everything) == []
    assert len(keys) == 1
    assert (tmp_path / "s" / "var" / "api_key").stat().st_mode & 0o777 == 0o600


def test_help_explains_and_starts_nothing() -> None:
    done = subprocess.run([sys.executable, "-m", "launcher.serve", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: bin/serve")
    assert "docs/configuration.md" in done.stdout


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with serving(tmp_path / "s", CY_LLM_PORT=str(port)) as served:
            assert served.process.wait(30) == 1
    assert f"port {port} is in use" in served.output
    assert "CY_LLM_PORT" in served.output


@pytest.mark.full
def test_a_worker_that_cannot_start_ends_everything_with_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "config.json").write_text(json.dumps({"demo": {"model_path": "none", "engine": "warp-drive"}}))
    with serving(tmp_path / "s", **ports()) as served:
        until(lambda: served.pids("gpu-train"), 20, "the others run")
        others = family(served.process.pid)
        assert served.process.wait(110) == 1
    assert "gpu-infer ended again and again" in served.output
    assert "warp-drive" in served.output
    assert "cuda-vllm-async" in served.output
    assert len(served.pids("gpu-infer")) == MAX_FAILED_STARTS
    assert left_of(others) == []


@pytest.mark.full
def test_whatever_is_killed_comes_back_and_it_answers_again(tmp_path: Path) -> None:
    with serving(tmp_path / "s", **ports()) as served:
        served.wait_for_banner()
        for name in ("gpu-infer", "web", "grpc", "redis", "cpu-work"):
            victim = served.pids(name)[-1]
            members = family(victim)
            os.kill(victim, signal.SIGKILL)
            until(lambda m=members: not left_of(m), 2, f"{name} and its children are gone")
            until(lambda n=name, v=victim: served.pids(n)[-1] != v, 10, f"{name} is back")
            until(lambda: served.answer().endswith("data: [DONE]"), 60, f"it answers again after {name} was killed")
        health = subprocess.run(
            ["bash", "-c", served.curl.replace("inference/stream", "health/details").replace("-X POST", "-X GET")],
            capture_output=True,
            text=True,
        )
        workers = json.loads(health.stdout)["components"]["coordinator"]["details"]["workers"]
        assert workers == {"total": 1, "healthy": 1, "unhealthy": 0}
        everything = family(served.process.pid)
        assert served.interrupt() == 0
    assert left_of(everything) == []


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_it_is_ended_itself(tmp_path: Path, number: int) -> None:
    env = ports()
    with serving(tmp_path / "s", **env) as served:
        served.wait_for_banner()
        everything = family(served.process.pid)
        os.kill(served.process.pid, number)
        served.process.wait(30)
        until(lambda: not left_of(everything), 2, "no process is left")
    with serving(tmp_path / "s", **env) as served:
        served.wait_for_banner()
        assert served.answer().endswith("data: [DONE]")


@pytest.mark.full
def test_its_own_redis_database_and_key_are_replaced_by_the_environment(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    env = {
        **ports(),
        "REDIS_URL": redis_server.url,
        "DATABASE_URL": f"sqlite:///{tmp_path / 'elsewhere.db'}",
        "CY_LLM_API_KEY": "my-own-key",
    }
    with serving(tmp_path / "s", **env) as served:
        served.wait_for_banner()
        assert "my-own-key" in served.output
        assert not (tmp_path / "s" / "var" / "redis").exists()
        assert not (tmp_path / "s" / "var" / "api_key").exists()
        assert (tmp_path / "elsewhere.db").exists()
