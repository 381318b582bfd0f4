"""``bin/serve``: Redis, the database, a key, the front doors and the workers, until Ctrl-C."""

import argparse
import contextlib
import os
import secrets
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import RedisError

from configuration.env import is_given
from configuration.listen_address import join, listens, reachable
from configuration.private_redis import data_folder
from engines.errors import ConfigError
from engines.models.download import CannotFetch
from engines.models.sources import SOURCES
from engines.registry import load_registry
from launcher.logs import ProcessLogs
from launcher.model_choice import choose_model
from launcher.readiness import WhenServing, when_listening, when_settled
from launcher.redis_server import RedisServer, RedisServerError
from launcher.supervisor import ProcessSpec, Supervisor
from settings import ROOT, Settings
from store.installation import InstallationClaim, PrefixTakenError, forget_claim
from store.redis.client import connect
from store.sql import db
from store.sql.api_keys import new_token
from text import clean_token, decode, is_token, tolerate_any_terminal

#: A developer's Ctrl-C need not wait as long as a rolling restart.
_DEVELOPMENT_DRAIN_SECONDS = 10.0
#: The first port on which workers and the gRPC process show their metrics (OpenTelemetry's for Prometheus).
_METRICS_PORT = 9464
#: Flower's, as the Procfile has it.
_FLOWER_PORT = 5555
_FLOWER_USER = "cy-llm"
#: What a process may take to end beside its drain. Seconds.
_STOP_GRACE_SECONDS = 15.0
#: How often the start is told to go on. Seconds.
_PROGRESS_SECONDS = 5.0


class CannotServe(Exception):
    """Something outside stands in the way; the message says what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal comes. Returns the exit status."""
    tolerate_any_terminal()
    asked = _parse(arguments)
    settings = Settings.from_env_or_exit()
    # Processes are started in the project's folder; a relative path in a variable means the caller's.
    environment = {**os.environ, **settings.child_paths(), "PYTHONPATH": _python_path()}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    if not is_given(environment, "CY_LLM_DRAIN_SECONDS"):
        environment["CY_LLM_DRAIN_SECONDS"] = str(_DEVELOPMENT_DRAIN_SECONDS)
    if not is_given(environment, "CY_LLM_METRICS_PORT"):
        environment["CY_LLM_METRICS_PORT"] = str(_METRICS_PORT)
    server: RedisServer | None = None
    try:
        registry = load_registry(settings.config_path, **settings.registry_options)
        _require_ports(settings)
        model = choose_model(registry, asked, settings, environment, _say)
        environment["CY_LLM_MODEL"] = model
        if not is_given(environment, "REDIS_URL"):
            server = RedisServer(data_folder(settings.var))
            server.require_free()
            environment["REDIS_URL"] = server.url
        if not settings.api_key:
            environment["CY_LLM_API_KEY"] = _make_key(settings.var / "api_key")
        _say("preparing the database")
        db.migrate(settings.database_url)
        redis_url = environment["REDIS_URL"]
        if server is None:
            InstallationClaim(connect(redis_url), db.sessions(db.connect(settings.database_url))).require()
        if not is_given(environment, "FLOWER_BASIC_AUTH"):
            environment["FLOWER_BASIC_AUTH"] = f"{_FLOWER_USER}:{_make_key(settings.var / 'flower_password')}"
        api_key = settings.api_key or environment["CY_LLM_API_KEY"]
        settings = replace(settings, redis_url=redis_url, api_key=api_key)
        return _Session(settings, environment, model, server).run()
    except (CannotServe, CannotFetch, ConfigError, PrefixTakenError, RedisServerError) as error:
        print(f"bin/serve: {error}", file=sys.stderr)
        return 1


def _parse(arguments: list[str] | None) -> str:
    """Return the model that is asked for; '' leaves it to the model file."""
    parser = argparse.ArgumentParser(
        prog="bin/serve",
        description="Serve a model on this machine: Redis, the front doors (HTTP, gRPC) and workers for inference, "
        "training and background work, until Ctrl-C. A process that ends is started again.",
        epilog="All settings are environment variables: docs/configuration.md.",
    )
    parser.add_argument(
        "--model",
        default="",
        metavar="ID",
        help="which model of the model file (config.json) to serve instead of its default; "
        "'demo' is the tiny one that comes along and needs no download",
    )
    found: str = parser.parse_args(arguments).model
    return found


class _Session:
    """The processes, and what is told about them."""

    def __init__(self, settings: Settings, environment: dict[str, str], model: str, server: RedisServer | None) -> None:
        self._settings = settings
        self._model = model
        self._logs = ProcessLogs(settings.var / "log")
        self._started = time.monotonic()
        self._ready = threading.Event()
        specs = _specs(settings, environment, model, server)
        self._supervisor = Supervisor(specs, self._logs, self._on_ready, self._on_trouble)

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        threading.Thread(target=self._tell_progress, name="progress", daemon=True).start()
        self._supervisor.run()
        self._ready.set()
        name = self._supervisor.given_up
        if name is not None:
            words = f"{name} ended again and again before it was ready. Its last lines:\n{self._logs.tail(name)}"
            print(f"\nbin/serve: {words}", file=sys.stderr)
        _say("stopped")
        return 0 if name is None else 1

    def _on_signal(self, *_: Any) -> None:
        self._supervisor.stop()

    def _on_ready(self) -> None:
        self._ready.set()
        _say(f"ready after {time.monotonic() - self._started:.0f} s")
        print(_banner(self._settings, self._model), flush=True)

    def _on_trouble(self, words: str) -> None:
        name = words.partition(" ")[0]
        _say(f"{words}; {self._logs.path(name)} has the details")

    def _tell_progress(self) -> None:
        while not self._ready.wait(_PROGRESS_SECONDS):
            elapsed = time.monotonic() - self._started
            _say(f"loading model '{self._model}' ({elapsed:.0f} s; {self._logs.path('gpu-infer')} has the details)")


def _specs(
    settings: Settings, environment: dict[str, str], model: str, server: RedisServer | None
) -> list[ProcessSpec]:
    """What runs, in the order in which it is started: the private Redis, if any, and processes of the Procfile."""
    grace = float(environment["CY_LLM_DRAIN_SECONDS"]) + _STOP_GRACE_SECONDS
    client = connect(settings.redis_url)
    ready: dict[str, Callable[[float], bool]] = {
        "web": when_listening(settings.host, settings.port, settings.openai_port),
        "grpc": when_listening(settings.host, settings.grpc_port),
        "gpu-infer": WhenServing(client, "infer@", model),
        "gpu-train": when_settled,
        "cpu-work": when_settled,
        "flower": when_listening("127.0.0.1", _FLOWER_PORT),
    }
    if listens("127.0.0.1", _FLOWER_PORT):
        # Somebody else's, or another installation's: nothing that is served needs it.
        _say(f"port {_FLOWER_PORT} is in use, Flower is not started")
        del ready["flower"]
    commands = procfile(ROOT / "Procfile")
    specs = [
        ProcessSpec(name, shlex.split(commands[name]), environment, ROOT, is_ready, grace)
        for name, is_ready in ready.items()
    ]
    if server is not None:
        specs.insert(0, ProcessSpec("redis", server.command(), environment, ROOT, _when_owned(server, client), grace))
    return specs


def _when_owned(server: RedisServer, client: redis.Redis) -> Callable[[float], bool]:
    """Ready when the private Redis answers; a claim that its file kept of an earlier database is forgotten once."""
    owned = False

    def is_ready(_elapsed: float) -> bool:
        nonlocal owned
        if not owned and server.answers():
            with contextlib.suppress(RedisError):
                forget_claim(client)
                owned = True
        return owned and server.answers()

    return is_ready


def procfile(path: Path) -> dict[str, str]:
    """Return the processes of a Procfile: name -> command."""
    lines = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines() if ":" in line)
    return {name.strip(): command.strip() for name, _, command in lines}


def _python_path() -> str:
    """The project first: processes that are started by a script (``celery``) find it as this one does."""
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([str(ROOT), *(path for path in others if path)]))


def _banner(settings: Settings, model: str) -> str:
    host = "localhost" if reachable(settings.host) == "127.0.0.1" else reachable(settings.host)
    api = f"http://{join(host, settings.port)}/api/v1"
    return f"""
  API      {api}
  OpenAI   http://{join(host, settings.openai_port)}/v1
  gRPC     {join(host, settings.grpc_port)}
  Key      {settings.api_key}
  Flower   http://localhost:{_FLOWER_PORT} ({_FLOWER_USER}; the password is in {settings.var / "flower_password"})
  Metrics  http://{join(host, settings.port)}/metrics (with the key)
  Logs     {settings.var / "log"}

Try it:

curl -N -X POST {api}/inference/stream \\
  -H "Content-Type: application/json" -H "X-API-Key: {settings.api_key}" \\
  -d '{{"modelId": "{model}", "prompt": "{_question(model)}", "generation": {{"temperature": 0}}}}'
{_hint(model)}
Ctrl-C stops everything."""


def _question(model: str) -> str:
    # One that the shipped model answers rightly in every dtype, on every processor.
    return "你好，请介绍一下自己" if model == "demo" else "What is the capital of Japan?"


def _hint(model: str) -> str:
    """On a GPU, the next step: the models that come along are small."""
    if shutil.which("nvidia-smi") is None or model not in ("demo", *SOURCES):
        return ""
    return "\nThis machine has a GPU: bin/serve --model qwen2.5-7b serves a larger model of the hub.\n"


def _make_key(path: Path) -> str:
    """Return the key of earlier runs, or make one that only this user can read."""
    if path.exists():
        key = clean_token(decode(path.read_bytes()))
        if not is_token(key):
            raise CannotServe(f"{path} holds no key; delete it, and the next start makes one")
        return key
    path.parent.mkdir(parents=True, exist_ok=True)
    key = new_token()
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    temporary.touch(mode=0o600, exist_ok=False)
    temporary.write_text(key + "\n")
    temporary.rename(path)
    return key


def _require_ports(settings: Settings) -> None:
    ports = (
        (settings.port, "CY_LLM_PORT"),
        (settings.openai_port, "CY_LLM_OPENAI_PORT"),
        (settings.grpc_port, "CY_LLM_GRPC_PORT"),
    )
    for port, variable in ports:
        if listens(settings.host, port):
            raise CannotServe(f"port {port} is in use; stop what listens there, or set {variable} to another port")


def _say(text: str) -> None:
    print(f"[cy-llm] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
