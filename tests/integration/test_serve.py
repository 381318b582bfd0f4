"""``bin/serve`` itself (behind its installing): start, banner, the printed curl line, Ctrl-C, second run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.supervisor import MAX_RESTARTS
from settings import ROOT
from testing.fake_text import expected_text
from testing.stack import free_port
from testing.waiting import until
from tests.conftest import require


@contextmanager
def serving(folder: Path, **env: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run the launcher on the fake engine in ``folder``."""
    folder.mkdir(exist_ok=True)
    config = folder / "config.json"
    config.write_text(json.dumps({"demo": {"model_path": "none", "engine": "fake"}}))
    output = folder / "output.txt"
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("CY_LLM_", "REDIS", "DATABASE"))}
    own = {"CY_LLM_VAR": str(folder / "var"), "CY_LLM_CONFIG": str(config), "PYTHONPATH": str(ROOT)}
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher.serve"],
            cwd=ROOT,
            env={**keep, **own, **env},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process, output
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def ports() -> dict[str, str]:
    names = ("CY_LLM_PORT", "CY_LLM_OPENAI_PORT", "CY_LLM_GRPC_PORT")
    return {name: str(free_port()) for name in names}


def processes_of(folder: Path) -> list[str]:
    """Command lines of what still runs with the folder in its environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (path / "environ").read_bytes() and path.name != str(os.getpid()):
                found.append((path / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_it_serves_stops_and_serves_again(tmp_path: Path) -> None:
    require(shutil.which("curl") is not None, "curl is not installed")
    keys = set()
    for _ in range(2):
        with serving(tmp_path / "s", **ports()) as (process, output):
            until(lambda o=output: "Ctrl-C" in o.read_text(), 60, "the banner is printed")
            banner = output.read_text()
            line = re.search(r"^curl.*?^  -d '.*?'$", banner, re.MULTILINE | re.DOTALL)
            assert line is not None
            answer = subprocess.run(["bash", "-c", line.group(0)], capture_output=True, text=True, timeout=30)
            assert expected_text("你好，请介绍一下自己", 1).strip() in answer.stdout
            assert answer.stdout.rstrip().endswith("data: [DONE]")
            keys.add(re.search(r"Key +(\S+)", banner).group(1))  # type: ignore[union-attr]
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        assert "[cy-llm] stopped" in output.read_text()
        until(lambda: not processes_of(tmp_path / "s"), 10, "no process is left")
    assert len(keys) == 1
    assert (tmp_path / "s" / "var" / "api_key").stat().st_mode & 0o777 == 0o600


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with serving(tmp_path / "s", CY_LLM_PORT=str(port)) as (process, output):
            assert process.wait(30) == 1
    assert f"port {port} is in use" in output.read_text()
    assert "CY_LLM_PORT" in output.read_text()


def test_a_worker_that_cannot_start_is_told_with_its_last_lines(tmp_path: Path) -> None:
    with serving(tmp_path / "s", **ports(), CY_LLM_ENGINE="warp-drive") as (process, output):
        assert process.wait(60) == 1
    text = output.read_text()
    assert "warp-drive" in text
    assert "cuda-vllm-async" in text
    until(lambda: not processes_of(tmp_path / "s"), 10, "no process is left")


def test_a_process_that_ends_is_started_again(tmp_path: Path) -> None:
    with serving(tmp_path / "s", **ports()) as (process, output):
        until(lambda: "Ctrl-C" in output.read_text(), 60, "the banner is printed")
        line = re.search(r"^curl.*?^  -d '.*?'$", output.read_text(), re.MULTILINE | re.DOTALL)
        assert line is not None
        system = tmp_path / "s" / "var" / "log" / "system.log"
        for name, number in (("gpu-infer", signal.SIGKILL), ("gpu-infer", signal.SIGTERM), ("web", signal.SIGKILL)):
            pattern = re.compile(rf"{name} started \(pid=(\d+)\)")
            started = pattern.findall(system.read_text())
            os.kill(int(started[-1]), number)
            until(lambda p=pattern, s=started: p.findall(system.read_text()) != s, 30, f"{name} is back")

            def answer() -> str:
                return subprocess.run(["bash", "-c", line.group(0)], capture_output=True, text=True, timeout=30).stdout

            until(lambda: answer().rstrip().endswith("data: [DONE]"), 60, "it answers again")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    until(lambda: not processes_of(tmp_path / "s"), 10, "no process is left")


def test_a_process_that_ends_again_and_again_ends_everything(tmp_path: Path) -> None:
    with serving(tmp_path / "s", **ports()) as (process, output):
        until(lambda: "Ctrl-C" in output.read_text(), 60, "the banner is printed")
        system = tmp_path / "s" / "var" / "log" / "system.log"
        for number in range(1, MAX_RESTARTS + 2):
            pids = [int(pid) for pid in re.findall(r"gpu-train started \(pid=(\d+)\)", system.read_text())]
            assert len(pids) == number
            os.kill(pids[-1], signal.SIGKILL)
            if number <= MAX_RESTARTS:
                until(lambda n=number: system.read_text().count("gpu-train started") > n, 30, "it is back")
        assert process.wait(60) == 1
    assert "gpu-train ended by itself" in output.read_text()


def test_its_own_redis_database_and_key_are_replaced_by_the_environment(tmp_path: Path, redis_server) -> None:  # type: ignore[no-untyped-def]
    env = {
        **ports(),
        "REDIS_URL": redis_server.url,
        "DATABASE_URL": f"sqlite:///{tmp_path / 'elsewhere.db'}",
        "CY_LLM_API_KEY": "my-own-key",
    }
    with serving(tmp_path / "s", **env) as (_, output):
        until(lambda: "Ctrl-C" in output.read_text(), 60, "the banner is printed")
        assert "my-own-key" in output.read_text()
        assert not (tmp_path / "s" / "var" / "redis").exists()
        assert not (tmp_path / "s" / "var" / "api_key").exists()
        assert (tmp_path / "elsewhere.db").exists()
