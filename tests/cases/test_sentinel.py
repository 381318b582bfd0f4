"""Redis behind Sentinel, plain and with TLS: a master that is killed under 32 streams."""

import json
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from store.redis.client import connect
from testing.fake_text import expected_text
from testing.stack import KEY, Stack, free_port
from testing.waiting import until
from tests.conftest import require

pytestmark = pytest.mark.full

_PASSWORD = "p@ss/w#rd"
_STREAMS = 32


class Servers:
    """A master, a replica and three Sentinels of Debian's Redis, each with a password."""

    def __init__(self, folder: Path, tls: bool) -> None:
        self.folder = folder
        self._tls = tls
        self._options: list[str] = []
        self.query = ""
        if tls:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(folder / "ca.pem")
            authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(
                folder / "s.pem"
            )
            files = (("--tls-cert-file", "s.pem"), ("--tls-key-file", "s.pem"), ("--tls-ca-cert-file", "ca.pem"))
            self._options = ["--tls-auth-clients", "no", "--tls-replication", "yes"]
            for option, name in files:
                self._options += [option, str(folder / name)]
            self.query = f"&ssl_ca_certs={folder / 'ca.pem'}"
        self.master, self.replica = free_port(), free_port()
        self.sentinels = [free_port() for _ in range(3)]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self._run(self.master, [])
        self._run(self.replica, ["--replicaof", f"127.0.0.1 {self.master}"])
        for port in self.sentinels:
            config = self.folder / f"sentinel-{port}.conf"
            lines = [
                f"sentinel monitor mine 127.0.0.1 {self.master} 2",
                f'sentinel auth-pass mine "{_PASSWORD}"',
                "sentinel down-after-milliseconds mine 1000",
                "sentinel failover-timeout mine 5000",
                'requirepass "sentinel-secret"',
            ]
            config.write_text("\n".join(lines) + "\n")
            self._run(port, ["--sentinel"], config)
        until(self._replicating, 30, "the replica follows the master")

    @property
    def url(self) -> str:
        scheme = "sentinels" if self._tls else "sentinel"
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return f"{scheme}://:p%40ss%2Fw%23rd@{hosts}/0?master_name=mine&sentinel_password=sentinel-secret{self.query}"

    def kill_master(self) -> None:
        self.processes[self.master].send_signal(signal.SIGKILL)

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(10)

    def _replicating(self) -> bool:
        try:
            with connect(self.url) as client:
                info = client.info("replication")
                return bool(info["connected_slaves"]) and info["slave0"]["state"] == "online"
        except Exception:
            return False

    def _run(self, port: int, options: list[str], config: Path | None = None) -> None:
        listen = ["--port", "0", "--tls-port", str(port)] if self._tls else ["--port", str(port)]
        folder = self.folder / str(port)
        folder.mkdir()
        command = ["redis-server", *([str(config)] if config else []), *options, *listen, *self._options]
        if config is None:
            command += ["--requirepass", _PASSWORD, "--masterauth", _PASSWORD, "--save", "", "--appendonly", "yes"]
        with (folder / "log").open("wb") as log:
            self.processes[port] = subprocess.Popen(
                [*command, "--bind", "127.0.0.1", "--dir", str(folder)], stdout=log, stderr=log
            )


@pytest.fixture(params=["plain", "TLS"])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Servers]:
    require(shutil.which("redis-server") is not None, "Debian's redis-server is not installed")
    made = Servers(tmp_path, request.param == "TLS")
    made.start()
    yield made
    made.stop()


def test_a_failover_loses_no_stream(servers: Servers, tmp_path: Path) -> None:
    models = {"slow": {"model_path": "none", "engine": "fake", "tokensPerSecond": 20}}
    env = {"REDIS_URL": servers.url, "CY_LLM_STREAMS_PER_KEY": "100", "CY_LLM_REQUESTS_PER_MINUTE": "10000"}
    stack = Stack(tmp_path / "stack", models, env=env)
    texts: dict[int, str] = {}
    try:
        stack.start_web()
        stack.spawn_worker("w1")
        headers = {"X-API-Key": KEY}
        ready = f"{stack.base}/ready"
        until(lambda: httpx.get(ready, trust_env=False).status_code == 200, 60, "a worker serves")

        def read(number: int) -> None:
            body = {"modelId": "slow", "prompt": f"p{number}", "generation": {"maxNewTokens": 300}}
            found = ""
            began = False
            with (
                httpx.Client(trust_env=False, timeout=120, headers=headers) as http,
                http.stream("POST", f"{stack.base}/api/v1/inference/stream", json=body) as stream,
            ):
                assert stream.status_code == 200, stream.read()
                for line in stream.iter_lines():
                    if line.startswith("data: {"):
                        chunk = json.loads(line[6:])
                        assert "choices" in chunk, chunk
                        found += chunk["choices"][0]["text"]
                        if not began:
                            began = True
                            begun.release()
            texts[number] = found

        begun = threading.Semaphore(0)
        readers = [threading.Thread(target=read, args=(number,)) for number in range(_STREAMS)]
        for reader in readers:
            reader.start()
        for _ in readers:
            assert begun.acquire(timeout=30), "a stream has not begun"
        servers.kill_master()
        for reader in readers:
            reader.join(100)
        exact = [number for number, text in texts.items() if text == expected_text(f"p{number}", 300)]
        assert len(exact) == _STREAMS, {n: len(t) for n, t in texts.items()}
        body = {"modelId": "slow", "prompt": "after", "generation": {"maxNewTokens": 3}}
        after = httpx.post(f"{stack.base}/api/v1/inference", json=body, headers=headers, trust_env=False, timeout=30)
        assert after.json()["choices"][0]["text"] == expected_text("after", 3)
    finally:
        stack.close()
