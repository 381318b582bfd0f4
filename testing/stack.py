"""The whole system as real processes: Redis, a database, gunicorn, Celery workers."""

import contextlib
import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
from redis.exceptions import RedisError

from launcher.redis_server import RedisServer
from settings import ROOT, Settings
from store.redis.client import connect
from store.redis.presence import Fleet, PresenceReader, WorkerInfo
from store.sql import db
from testing.waiting import until

KEY = "test-key"
GATEWAY_TOKEN = "test-gateway-token"


#: Ports that the kernel gives to nobody by itself (its own begin at 32768), a slice for each process of tests: what
#: was free stays free until the process that it is meant for has started.
_SLICE = 2500
_slice_begins = 12_000 + _SLICE * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 8)
_ports = itertools.cycle(range(_slice_begins, _slice_begins + _SLICE))
for _ in range(secrets.randbelow(_SLICE)):
    next(_ports)


def free_port() -> int:
    """Return a port that nothing listens on, another one at each call."""
    for _ in range(_SLICE):
        port = next(_ports)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def script(name: str) -> str:
    """The command as a Procfile calls it: unlike ``python -m``, it does not have the folder on its path."""
    return str(Path(sys.executable).parent / name)


@dataclass
class Process:
    """A child of the stack and the file that its output goes to."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self, seconds: float) -> int:
        return self.popen.wait(timeout=seconds)

    def lines(self) -> list[dict[str, Any]]:
        """The JSON log lines written so far."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    found.append(value)
        return found

    def lines_of(self, request_id: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line.get("request_id") == request_id]

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])


@dataclass
class Stack:
    """One system in ``folder``. ``models`` is the content of its model file."""

    folder: Path
    models: dict[str, Any]
    env: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    openai_port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    #: The checkout that processes are started from; another one shows two versions side by side.
    root: Path = ROOT
    #: Whether the database is brought to the newest schema.
    migrate: bool = True

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = self.folder / "config.json"
        self.config.write_text(json.dumps(self.models))
        # What a killed server wrote is kept without it; a busy disk would hold tests up.
        self.redis = RedisServer(self.folder / "redis", appendfsync="no")
        self.redis.start()
        self.database_url = f"sqlite:///{self.folder / 'test.db'}"
        if self.migrate:
            db.migrate(self.database_url)
        self.client = connect(self.redis.url)
        self.presence = PresenceReader(self.client)

    @property
    def environment(self) -> dict[str, str]:
        keep = {name: value for name, value in os.environ.items() if not name.startswith("CY_LLM_")}
        return {
            **keep,
            "REDIS_URL": self.redis.url,
            "DATABASE_URL": self.database_url,
            "CY_LLM_CONFIG": str(self.config),
            "CY_LLM_API_KEY": KEY,
            "GATEWAY_API_TOKEN": GATEWAY_TOKEN,
            "CY_LLM_PORT": str(self.port),
            "CY_LLM_OPENAI_PORT": str(self.openai_port),
            "CY_LLM_GRPC_PORT": str(self.grpc_port),
            "CY_LLM_HOST": "127.0.0.1",
            "CY_LLM_DRAIN_SECONDS": "20",
            "CY_LLM_FILES_ROOT": str(self.folder / "files"),
            **self.env,
        }

    @property
    def settings(self) -> Settings:
        return Settings(redis_url=self.redis.url, database_url=self.database_url, config_path=self.config, api_key=KEY)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def openai_base(self) -> str:
        return f"http://127.0.0.1:{self.openai_port}/v1"

    def http(self, **options: Any) -> httpx.Client:
        """A client of the native API with the right key."""
        return httpx.Client(
            base_url=f"{self.base}/api/v1", headers={"X-API-Key": KEY}, timeout=60, trust_env=False, **options
        )

    def openai(self, key: str = KEY) -> openai.OpenAI:
        """OpenAI's own client; it does not retry, so that a test sees each answer. Use it in ``with``."""
        http = httpx.Client(trust_env=False, timeout=60)
        return openai.OpenAI(base_url=self.openai_base, api_key=key, max_retries=0, http_client=http)

    def run(self, name: str, command: list[str], **env: str) -> Process:
        log = self.folder / f"{name}-{len(self.processes)}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                command,
                env={**self.environment, **env},
                cwd=self.root,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = Process(name, popen, log)
        self.processes.append(process)
        return process

    def start_web(self, **env: str) -> Process:
        """Start gunicorn and wait until it answers."""
        web = self.run("web", [script("gunicorn"), "wsgi:app"], **env)
        port = int(env.get("CY_LLM_OPENAI_PORT", self.openai_port))

        def answers() -> bool:
            self._require_alive(web)
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
            return False

        until(answers, 30, "the front door answers")
        return web

    def start_grpc(self, **env: str) -> Process:
        """Start the gRPC process and wait until it listens."""
        server = self.run("grpc", [sys.executable, "-m", "webapp.rpc"], **env)
        port = int(env.get("CY_LLM_GRPC_PORT", self.grpc_port))

        def listens() -> bool:
            self._require_alive(server)
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until(listens, 30, "the gRPC server listens")
        return server

    def start_worker(
        self, name: str = "w1", options: list[str] | None = None, seconds: float = 60, **env: str
    ) -> Process:
        """Start a gpu-infer worker and wait until it is ready."""
        worker = self.spawn_worker(name, options, **env)

        def ready() -> WorkerInfo | None:
            self._require_alive(worker)
            # While several engines load on two cores, Redis may take longer than its clients wait.
            with contextlib.suppress(RedisError):
                return self.find(name)
            return None

        try:
            until(ready, seconds, f"worker {name} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{worker.tail()}") from None
        return worker

    def spawn_worker(self, name: str, options: list[str] | None = None, **env: str) -> Process:
        command = [script("celery"), "-A", "tasks", "worker", "-Q", "gpu-infer", "-P", "threads", "-c", "128"]
        command += ["-n", f"{name}@test", "--without-gossip", "--without-mingle", *(options or [])]
        return self.run(name, command, **env)

    def spawn_background(self, name: str = "work") -> Process:
        """Start a ``cpu-work`` worker; who needs its work waits for that."""
        options = [
            "-Q",
            "cpu-work",
            "-P",
            "threads",
            "-c",
            "4",
            "-n",
            f"{name}@h",
            "--without-gossip",
            "--without-mingle",
        ]
        return self.run(name, [script("celery"), "-A", "tasks", "worker", *options])

    def start_trainer(self, name: str = "train", **env: str) -> Process:
        """Start a gpu-train worker and wait until it takes jobs."""
        command = [script("celery"), "-A", "tasks", "worker", "-Q", "gpu-train", "-P", "threads", "-c", "1"]
        trainer = self.run(name, [*command, "-n", f"{name}@test", "--without-gossip", "--without-mingle"], **env)

        def ready() -> bool:
            self._require_alive(trainer)
            return any("ready." in str(line.get("message")) for line in trainer.lines())

        until(ready, 60, f"worker {name} takes jobs")
        return trainer

    def fleet(self) -> Fleet:
        return self.presence.fleet(fresh=True)

    def find(self, name: str) -> WorkerInfo | None:
        """The ready worker of that name."""
        for worker in self.fleet().living:
            if worker.name == f"{name}@test" and worker.ready:
                return worker
        return None

    def stop(self, process: Process, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        if process.popen.poll() is None:
            process.signal(number)
        return process.wait(seconds)

    def close(self) -> None:
        """End everything that was started, by process group."""
        for process in self.processes:
            if process.popen.poll() is None:
                process.signal(signal.SIGTERM)
        ends = time.monotonic() + 30
        for process in self.processes:
            try:
                process.wait(max(0.1, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
        self.redis.stop()

    @staticmethod
    def _require_alive(process: Process) -> None:
        if process.popen.poll() is not None:
            raise AssertionError(f"{process.name} ended with {process.popen.returncode}:\n{process.tail()}")
