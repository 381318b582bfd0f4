"""Environment and configuration: each way a value reaches a process."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engines.errors import ConfigError
from engines.registry import load_registry
from launcher.redis_server import RedisServer
from settings import ROOT
from store.redis.client import connect
from testing.fake_text import expected_text
from testing.served import ports, serving
from testing.stack import script
from testing.waiting import until
from tests.conftest import require

pytestmark = pytest.mark.full

#: Every process of the Procfile, and the command line.
PROCESSES = {
    "launcher": [sys.executable, "-m", "launcher.serve"],
    "web": [script("gunicorn"), "wsgi:app"],
    "grpc": [sys.executable, "-m", "webapp.rpc"],
    "gpu-infer": [script("celery"), "-A", "tasks", "worker", "-Q", "gpu-infer", "-P", "threads"],
    "gpu-train": [script("celery"), "-A", "tasks", "worker", "-Q", "gpu-train", "-P", "threads"],
    "cpu-work": [script("celery"), "-A", "tasks", "worker", "-Q", "cpu-work", "-P", "threads"],
    "cli": [sys.executable, "-m", "cli", "jobs"],
}
#: Variables that take no text of this kind.
WRONG = {
    "CY_LLM_PORT": "http",
    "CY_LLM_KEEPALIVE_SECONDS": "soon",
    "REDIS_URL": "redis://:a#b@h:6379/0",
    "DATABASE_URL": "mysql://h/x",
    "CY_LLM_HOST": "http://localhost",
    "CY_LLM_API_KEY": "two words",
    "CY_LLM_LOG_LEVEL": "LOUD",
}


def environment(**env: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CY_LLM_", "REDIS", "DATABASE"))}
    return {**kept, "PYTHONPATH": str(ROOT), **env}


@pytest.mark.parametrize("name", PROCESSES)
def test_what_is_wrong_stops_each_process_with_one_line(name: str) -> None:
    for variable, value in WRONG.items():
        done = subprocess.run(
            PROCESSES[name],
            cwd=ROOT,
            env=environment(**{variable: value}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode != 0, (variable, said)
        assert "Traceback" not in said, said
        lines = [line for line in said.splitlines() if variable in line]
        assert len(lines) == 1, (variable, said)
        assert "must" in lines[0] or "holds a '#'" in lines[0], lines
        if variable in ("REDIS_URL", "CY_LLM_API_KEY"):
            assert value not in said


@pytest.mark.parametrize("name", ["launcher", "web", "grpc", "gpu-infer", "gpu-train"])
@pytest.mark.parametrize("content", ["{", '{"models": {"m": {"model_path": "x", "nope": 1}}}', None])
def test_a_wrong_model_file_stops_each_process_with_one_line(tmp_path: Path, name: str, content: str | None) -> None:
    config = tmp_path / "config.json"
    if content is not None:
        config.write_text(content)
    env = {**ports(), "CY_LLM_CONFIG": str(config), "CY_LLM_VAR": str(tmp_path / "var"), "CY_LLM_API_KEY": "k"}
    env["DATABASE_URL"] = f"sqlite:///{tmp_path / 'x.db'}"
    done = subprocess.run(
        PROCESSES[name], cwd=ROOT, env=environment(**env), capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in said, said
    assert any(word in said for word in ("config.json", "'nope'")), said


@pytest.mark.parametrize("value", ["tcp://10.0.0.1:8080", ""])
def test_07_08_an_injected_or_empty_port(tmp_path: Path, value: str) -> None:
    """The default is used: shown without needing it to be free."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        except OSError:
            # Somebody else listens there: that serves as well.
            assert True
        env = {**ports(), "CY_LLM_PORT": value, "CY_LLM_PORT_8080_TCP_ADDR": "10.0.0.1"}
        with serving(tmp_path / "s", **env) as served:
            assert served.process.wait(60) == 1
    assert "port 8080 is in use" in served.output
    assert "Traceback" not in served.output
    assert ("Kubernetes" in served.output) == bool(value)


def test_08_empty_variables_are_unset(tmp_path: Path) -> None:
    empty = dict.fromkeys(("REDIS_URL", "CY_LLM_CONFIG", "DATABASE_URL", "CY_LLM_API_KEY", "CY_LLM_DRAIN_SECONDS"), "")
    with serving(tmp_path / "s", **ports(), **{**empty, "CY_LLM_ENGINE": "fake"}) as served:
        served.wait_for_banner()
        assert served.answer().endswith("data: [DONE]")


def test_10_a_socket_with_a_database_number(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis server #1")
    server.start()
    try:
        with serving(tmp_path / "s", **ports(), REDIS_URL=f"{server.url}?db=3") as served:
            served.wait_for_banner()
            assert expected_text("你好，请介绍一下自己", 1).strip() in served.answer()
            with connect(f"{server.url}?db=3") as three, connect(server.url) as zero:
                assert three.dbsize() > 3
                assert zero.dbsize() == 0
    finally:
        server.stop()


@pytest.mark.parametrize("host", ["::1", "[::1]", "::", "127.0.0.1", "localhost"])
def test_12_addresses_to_listen_on(tmp_path: Path, host: str) -> None:
    require(socket.has_ipv6 and Path("/proc/net/if_inet6").read_text() != "", "this machine has no IPv6")
    chosen = ports()
    with serving(tmp_path / "s", **chosen, CY_LLM_HOST=host) as served:
        served.wait_for_banner()
        assert served.answer().endswith("data: [DONE]")
        shown = "[::1]" if ":" in host else "localhost"
        assert f"http://{shown}:{chosen['CY_LLM_PORT']}/api/v1" in served.output
        address = f"{shown}:{chosen['CY_LLM_GRPC_PORT']}"
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10, wait_for_ready=True).status == 1


def test_14_proxies_are_for_other_hosts(tmp_path: Path) -> None:
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy"), "http://127.0.0.1:9")
    proxies["ALL_PROXY"] = "socks5://127.0.0.1:9"
    chosen = ports()
    with serving(tmp_path / "s", **chosen, **proxies) as served:
        served.wait_for_banner()
        for command in (["jobs"], ["adapters"], ["chat", "hi"]):
            done = subprocess.run(
                [sys.executable, "-m", "cli", *command],
                cwd=tmp_path,
                env=environment(**chosen, **proxies, CY_LLM_VAR=str(tmp_path / "s" / "var")),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("change", ["bom", "crlf"])
def test_15_a_model_file_of_a_windows_editor(tmp_path: Path, change: str) -> None:
    raw = (ROOT / "config.json").read_bytes()
    raw = b"\xef\xbb\xbf" + raw if change == "bom" else raw.replace(b"\n", b"\r\n")
    (tmp_path / "c.json").write_bytes(raw)
    assert load_registry(tmp_path / "c.json").default.id == "smollm2-135m"


def test_15_paths_in_the_model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models" / "a b#é").mkdir(parents=True)
    entries = {"home": "~/models/demo", "odd": "models/a b#é", "hub": "org/name"}
    (tmp_path / "c.json").write_text(json.dumps({name: {"modelPath": path} for name, path in entries.items()}))
    registry = load_registry(tmp_path / "c.json")
    assert registry.resolve("home").location == str(tmp_path / "models" / "demo")
    assert registry.resolve("odd").location == str(tmp_path / "models" / "a b#é")
    assert registry.resolve("hub").location == "org/name"
    for path in ("a\0b", "~nobody-of-that-name/x", "\ud800"):
        (tmp_path / "c.json").write_text(json.dumps({"m": {"modelPath": path}}))
        with pytest.raises(ConfigError):
            load_registry(tmp_path / "c.json")
    (tmp_path / "c.json").write_text(json.dumps({"m": {"modelPath": "x", "maxModelLen": None, "name": None}}))
    assert load_registry(tmp_path / "c.json").default.name == "m"


def test_24_two_installations_on_one_redis(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    try:
        first, second = ports(), ports()
        with serving(tmp_path / "one", **first, REDIS_URL=server.url) as one:
            one.wait_for_banner()
            # Pub/sub knows no database numbers.
            for url in (server.url, f"{server.url}?db=0"):
                with serving(tmp_path / "two", **second, REDIS_URL=url) as two:
                    assert two.process.wait(60) == 1
                assert "CY_LLM_REDIS_PREFIX" in two.output
            with serving(tmp_path / "two", **second, REDIS_URL=server.url, CY_LLM_REDIS_PREFIX="two:") as two:
                two.wait_for_banner()
                assert two.answer().endswith("data: [DONE]")
                with connect(server.url) as client:
                    keys = [key.decode() for key in client.scan_iter("*")]
                    prefixes = {key.partition("cy:")[0] for key in keys if "cy:" in key}
                    assert prefixes == {"", "two:"}
                    # What one installation is told, the other does not hear.
                    client.publish("cy:control", json.dumps({"command": "unload_model", "id": "demo"}))

                def status(served_ports: dict[str, str], key: str) -> str:
                    url = f"http://127.0.0.1:{served_ports['CY_LLM_PORT']}/api/v1/models/demo"
                    found: str = httpx.get(url, headers={"X-API-Key": key}, trust_env=False).json()["status"]
                    return found

                until(lambda: status(first, one.key) == "unavailable", 20, "the first has let go of its model")
                assert status(second, two.key) == "ready"
                assert two.answer().endswith("data: [DONE]")
    finally:
        server.stop()


def test_folders_of_any_name(tmp_path: Path) -> None:
    """A project and its state in folders with blanks, '#', '%', '?' and letters of other alphabets."""
    folder = tmp_path / "a b#c%20d?é 你"
    folder.mkdir()
    for name in ("one", "two"):
        with serving(folder / "s", cwd=folder, **ports()) as served:
            served.wait_for_banner()
            assert served.answer().endswith("data: [DONE]"), name
    assert (folder / "s" / "var" / "cy-llm.db").exists()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_relative_paths_are_the_caller_s(tmp_path: Path) -> None:
    settings = {"CY_LLM_VAR": "state", "CY_LLM_CONFIG": "s/config.json", "CY_LLM_ADAPTERS_ROOT": "mine"}
    with serving(tmp_path / "s", cwd=tmp_path, **ports(), **settings, DATABASE_URL="sqlite:///x.db") as served:
        served.wait_for_banner()
        assert served.answer().endswith("data: [DONE]")
    assert (tmp_path / "state" / "api_key").exists()
    assert (tmp_path / "x.db").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "gbk"])
def test_a_terminal_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    with serving(tmp_path / "s", **ports(), PYTHONIOENCODING=encoding, LC_ALL="C") as served:

        def banner() -> bool:
            assert served.process.poll() is None
            return b"Ctrl-C" in (served.folder / "output.txt").read_bytes()

        until(banner, 60, "the banner is printed")
    done = subprocess.run(
        [sys.executable, "-m", "cli", b"chat", b"\xff\xfe"],
        cwd=ROOT,
        env=environment(PYTHONIOENCODING=encoding),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert b"argument 2 is not UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_key_file_with_white_space(tmp_path: Path) -> None:
    (tmp_path / "s" / "var").mkdir(parents=True)
    (tmp_path / "s" / "var" / "api_key").write_bytes(b"\xef\xbb\xbfmy-key \r\n\n")
    with serving(tmp_path / "s", **ports()) as served:
        served.wait_for_banner()
        assert served.key == "my-key"
        assert served.answer().endswith("data: [DONE]")


def test_50_a_user_without_a_name_and_a_home_and_a_read_only_project(tmp_path: Path) -> None:
    """As OpenShift runs every container. Real vLLM, and a training, whose adapter answers."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    works = subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0
    require(works, "user namespaces are not to be had here")
    folder, state = tmp_path / "s", tmp_path / "state"
    for path in (folder, state / "data"):
        path.mkdir(parents=True)
    shutil.copy(ROOT / "demo" / "train.jsonl", state / "data" / "train.jsonl")
    model = {
        **json.loads((ROOT / "config.json").read_text())["models"]["demo"],
        "modelPath": str(ROOT / "models" / "demo"),
    }
    (folder / "config.json").write_text(json.dumps({"demo": model}))
    read_only = f'mount --bind "{ROOT}" "{ROOT}" && mount -o remount,ro,bind "{ROOT}" && exec "$@"'
    before = [*unshare, "sh", "-c", read_only, "sh", "unshare", "--user", "--map-user=12345", "--map-group=12345"]
    before += ["env", "-u", "USER", "-u", "LOGNAME", "HOME=/nonexistent"]
    chosen = ports()
    env = {
        **chosen,
        "CY_LLM_VAR": str(state / "var"),
        "CY_LLM_ADAPTERS_ROOT": str(state / "adapters"),
        "CY_LLM_OUTPUTS_ROOT": str(state / "outputs"),
        "CY_LLM_DATA_ROOTS": str(state / "data"),
    }
    with serving(folder, before=before, **env) as served:
        served.wait_for_banner(180)
        assert served.answer().endswith("data: [DONE]")
        base = f"http://127.0.0.1:{chosen['CY_LLM_PORT']}/api/v1"
        with httpx.Client(base_url=base, headers={"X-API-Key": served.key}, timeout=60, trust_env=False) as http:
            body = {"baseModel": "demo", "datasetPath": "train.jsonl", "outputDir": "a", "adapterName": "captain"}
            started = http.post("/training/start", json={**body, "hyperParams": {"epochs": 2, "loraRank": 8}})
            assert started.status_code == 200, started.text
            job = started.json()["jobId"]

            def ended() -> str | None:
                found = http.get(f"/training/status/{job}").json()
                return found["status"] if found["status"] in ("completed", "failed") else None

            assert until(ended, 180, "the training ends") == "completed"
            answer = http.post("/inference", json={"modelId": "demo", "prompt": "Hi", "adapter": "captain"})
            assert answer.status_code == 200, answer.text
