"""Each contract of import-linter fails when it is broken on purpose."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from settings import ROOT

#: Contract (the start of its name) -> where it is broken and with what line.
BREACHES = {
    "Rooms stand on one another": [
        ("store/redis.py", "import tasks.names"),
        ("engines/types.py", "import store.names"),
        ("tasks/names.py", "import webapp.errors"),
    ],
    "Engines know no Flask": [("engines/types.py", "import redis"), ("engines/types.py", "import sqlalchemy")],
    "Only webapp knows Flask": [("store/names.py", "import flask")],
    "Only tasks knows Celery": [("webapp/sse.py", "import celery")],
    "The front door and the store": [
        ("store/names.py", "import torch"),
        ("webapp/sse.py", "import engines.vllm_stats"),
    ],
    "Only the vLLM engines": [("engines/types.py", "import vllm")],
}
CASES = [(name, path, line) for name, breaches in BREACHES.items() for path, line in breaches]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("webapp", "tasks", "store", "engines", "launcher"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "settings.py", "logs.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_front_door_runs_without_torch(tmp_path: Path) -> None:
    """Contracts see imports; this sees what is loaded when a dataset is checked."""
    code = """
import sys
from pathlib import Path
from settings import Settings
from webapp import create_app
from engines.training.check import load_dataset
from engines.training.lengths import TokenCounter
load_dataset(Path('demo/train.jsonl'), 'sft', '', TokenCounter(Path('models/demo')), 512, 'refuse', 0.0)
found = {'torch', 'vllm', 'transformers', 'trl', 'peft', 'datasets'} & set(sys.modules)
assert not found, found
"""
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
    assert [row for row in done.stdout.splitlines() if row.startswith(contract) and row.endswith("BROKEN")]
