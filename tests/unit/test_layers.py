"""Each contract of import-linter fails when it is broken on purpose."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from settings import ROOT

ROOMS = ("cli", "launcher", "webapp", "services", "tasks", "store", "engines")
#: Contract (the start of its name) -> where it is broken and with what line.
BREACHES = {
    "Floors stand on one another": [
        ("store/redis/client.py", "import tasks.broker.names"),
        ("engines/types.py", "import store.redis.keys"),
        ("services/errors.py", "import webapp.http.sse"),
        ("tasks/broker/names.py", "import services.errors"),
        ("webapp/http/sse.py", "import cli.client"),
    ],
    "The running side of the queue": [("tasks/broker/names.py", "import tasks.worker.heartbeat")],
    "Nothing above the queue": [("services/errors.py", "import tasks.celery")],
    "Workers know no use cases": [("tasks/worker/heartbeat.py", "import services.errors")],
    "Faces do not know each other": [("webapp/rpc/status.py", "import webapp.v1.error_body")],
    "Engines know no Flask": [("engines/types.py", "import redis"), ("engines/types.py", "import settings")],
    "Only the faces know Flask": [("store/redis/keys.py", "import flask"), ("services/errors.py", "import grpc")],
    "gRPC needs no Flask": [("webapp/rpc/status.py", "import webapp.http.sse")],
    "Only the queue's running side": [
        ("webapp/http/sse.py", "import celery"),
        ("tasks/broker/names.py", "import kombu"),
    ],
    "Faces touch neither Redis nor SQL": [("webapp/http/sse.py", "import redis")],
    "Faces, services, store": [
        ("store/redis/keys.py", "import torch"),
        ("webapp/http/sse.py", "import engines.vllm.stats"),
        ("services/errors.py", "import engines.training.trainer.run"),
    ],
    "Only engines.vllm imports vLLM": [("engines/types.py", "import vllm")],
}
CASES = [(name, path, line) for name, breaches in BREACHES.items() for path, line in breaches]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ROOMS:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, tmp_path / path.name)
    return tmp_path


@pytest.mark.parametrize(
    ("work", "heavy"),
    [
        (
            "from webapp import create_app; import webapp.rpc.server, services.training.dataset_check",
            "torch vllm transformers trl peft datasets celery",
        ),
        # A process of its own: it renders chat templates with transformers, which then loads no torch.
        (
            "from engines.training.datasets.check import check\n"
            "from engines.training.datasets.check_messages import CheckRequest\n"
            "found = check(CheckRequest('demo/train.jsonl', 'sft', '', 'models/demo', 512, 'refuse', 0.0))\n"
            "assert not found.problems and found.counted, found",
            "torch vllm trl peft datasets celery",
        ),
    ],
    ids=["front doors", "check of a data set"],
)
def test_it_runs_without_torch(work: str, heavy: str) -> None:
    """Contracts see imports; this sees what is loaded."""
    code = f"{work}\nimport sys\nloaded = set({heavy.split()!r}) & set(sys.modules)\nassert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_contract_has_a_breach_here() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = [contract["name"] for contract in document["tool"]["importlinter"]["contracts"]]
    assert len(contracts) == len(BREACHES)
    assert all(any(contract.startswith(start) for start in BREACHES) for contract in contracts)


def test_the_code_keeps_them(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("contract", "path", "line"), CASES)
def test_a_breach_is_found(copy: Path, contract: str, path: str, line: str) -> None:
    with (copy / path).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint(copy)
    assert done.returncode != 0
    assert [row for row in done.stdout.splitlines() if row.startswith(contract) and row.endswith("BROKEN")], done.stdout
