"""``bin/serve``: Redis, the database, a key, the front door and one worker, until Ctrl-C."""

import os
import secrets
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from redis.exceptions import RedisError

from engines.errors import ConfigError
from engines.registry import load_registry
from launcher.processes import LogFiles, ProcessManager
from launcher.redis_server import RedisServer, RedisServerError
from settings import Settings
from store import db
from store.keys import new_token
from store.presence import Presence
from store.redis import connect

_PROCESSES = ["web", "grpc", "gpu-infer", "gpu-train"]
#: Longer than a large model takes to load from a slow disk.
_READY_TIMEOUT_SECONDS = 1800.0
#: A developer's Ctrl-C need not wait as long as a rolling restart.
_DEVELOPMENT_DRAIN_SECONDS = 10.0
_STOP_GRACE_SECONDS = 15.0


class CannotServe(Exception):
    """Something outside stands in the way; the message says what to do."""


def main() -> int:
    """Serve until a signal comes. Returns the exit status."""
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    environment.setdefault("CY_LLM_DRAIN_SECONDS", str(_DEVELOPMENT_DRAIN_SECONDS))
    settings = Settings.from_env()
    server: RedisServer | None = None
    try:
        registry = load_registry(settings.config_path, settings.engine)
        _require_ports(settings)
        if "REDIS_URL" not in environment:
            server = RedisServer(settings.var / "redis")
            _say("starting Redis")
            server.start()
            environment["REDIS_URL"] = server.url
        if not settings.api_key:
            environment["CY_LLM_API_KEY"] = _own_key(settings.var / "api_key")
        _say("preparing the database")
        db.migrate(settings.database_url)
        settings = replace(settings, redis_url=environment["REDIS_URL"], api_key=environment["CY_LLM_API_KEY"])
        return _Session(settings, environment, registry.default.id).run()
    except (CannotServe, ConfigError, RedisServerError) as error:
        print(f"bin/serve: {error}", file=sys.stderr)
        return 1
    finally:
        if server is not None:
            server.stop()


class _Session:
    """The processes, and what is told about them."""

    def __init__(self, settings: Settings, environment: dict[str, str], model: str) -> None:
        self._settings = settings
        self._model = model
        self._logs = LogFiles(settings.var / "log")
        drain = float(environment["CY_LLM_DRAIN_SECONDS"])
        self._manager = ProcessManager(self._logs, drain + _STOP_GRACE_SECONDS, self._started, self._may_restart)
        self._manager.add(_PROCESSES, environment)
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._was_ready = False

    def run(self) -> int:
        self._manager.loop()
        self._over.set()
        stopped_by_user = self._manager.returncode in (130, 143)
        if not stopped_by_user:
            name = self._manager.culprit() or "a process"
            print(f"\nbin/serve: {name} ended by itself. Its last lines:\n{self._logs.tail(name)}", file=sys.stderr)
        _say("stopped")
        return 0 if stopped_by_user else 1

    def _started(self) -> None:
        self._watcher.start()

    def _may_restart(self) -> bool:
        """Once it has worked; a start that fails is told at once. (Starting forks: no thread may run then.)"""
        return self._was_ready and not self._watcher.is_alive()

    def _watch(self) -> None:
        """Tell how the start goes, then how to ask."""
        presence = Presence(connect(self._settings.redis_url))
        began = time.monotonic()
        told = 0.0
        while not self._over.wait(0.5):
            elapsed = time.monotonic() - began
            if self._ready(presence):
                self._was_ready = True
                _say(f"ready after {elapsed:.0f} s")
                print(_banner(self._settings, self._model), flush=True)
                return
            if elapsed - told >= 5:
                told = elapsed
                _say(f"loading model '{self._model}' ({elapsed:.0f} s)")
            if elapsed > _READY_TIMEOUT_SECONDS:
                _say(f"still not ready; see {self._logs.path('gpu-infer')}")
                return

    def _ready(self, presence: Presence) -> bool:
        try:
            serving = presence.fleet(fresh=True).serving(self._model)
        except RedisError:
            return False
        own = self._settings
        return bool(serving) and all(_listens(port) for port in (own.port, own.openai_port, own.grpc_port))


def _banner(settings: Settings, model: str) -> str:
    return f"""
  API      http://localhost:{settings.port}/api/v1
  OpenAI   http://localhost:{settings.openai_port}/v1
  gRPC     localhost:{settings.grpc_port}
  Key      {settings.api_key}
  Logs     {settings.var / "log"}

Try it:

curl -N -X POST http://localhost:{settings.port}/api/v1/inference/stream \\
  -H "Content-Type: application/json" -H "X-API-Key: {settings.api_key}" \\
  -d '{{"modelId": "{model}", "prompt": "你好，请介绍一下自己"}}'

Ctrl-C stops everything."""


def _own_key(path: Path) -> str:
    """Return the key of earlier runs, or make one that only this user can read."""
    if path.exists():
        return path.read_text().strip()
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
        if _listens(port):
            raise CannotServe(f"port {port} is in use; stop what listens there, or set {variable} to another port")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _say(text: str) -> None:
    print(f"[cy-llm] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
