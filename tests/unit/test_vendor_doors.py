"""What a vendor does not document is touched in one file."""

import ast
import re
from pathlib import Path

import pytest

from settings import ROOT

#: vLLM's documented modules; see ``engines/vllm/internals``.
VLLM_PUBLIC = {
    "vllm.config",
    "vllm.engine.arg_utils",
    "vllm.engine.protocol",
    "vllm.inputs",
    "vllm.lora.request",
    "vllm.outputs",
    "vllm.platforms",
    "vllm.sampling_params",
}
_VLLM_PARTS = ("__init__", "application", "clients", "replay", "tokenizing")
#: ``core_process.py`` is the part of the door that runs in the engine core.
VLLM_DOORS = {*(f"engines/vllm/internals/{name}.py" for name in _VLLM_PARTS), "engines/vllm/core_process.py"}
#: What Celery's reference documents of what is used here.
#: The guide to workers has remote commands of one's own.
CELERY_PUBLIC = {"celery", "celery.exceptions", "celery.worker.control"}
CELERY_DOORS = {"tasks/worker/celery_internals.py"}
GUNICORN_DOORS = {"webapp/gunicorn/internals.py"}
ROOMS = ("cli", "engines", "launcher", "services", "store", "tasks", "webapp")


def sources() -> list[Path]:
    return [path for room in ROOMS for path in (ROOT / room).rglob("*.py")] + list(ROOT.glob("*.py"))


def imported(path: Path, vendor: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name == vendor or name.startswith(f"{vendor}.")}


@pytest.mark.parametrize(
    ("vendor", "public", "doors"),
    [
        ("vllm", VLLM_PUBLIC, VLLM_DOORS),
        ("celery", CELERY_PUBLIC, CELERY_DOORS),
        ("kombu", set(), set()),
        ("billiard", set(), CELERY_DOORS),
        ("gunicorn", set(), GUNICORN_DOORS),
        ("honcho", set(), set()),
    ],
)
def test_undocumented_modules_are_imported_in_the_door_alone(vendor: str, public: set[str], doors: set[str]) -> None:
    strays = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources()
        for name in imported(path, vendor) - public
        if str(path.relative_to(ROOT)) not in doors
    }
    assert strays == set()


def test_a_stray_would_be_found(tmp_path: Path) -> None:
    stray = tmp_path / "stray.py"
    stray.write_text("from vllm.v1.engine.async_llm import AsyncLLM\nimport vllm.envs\n")
    assert imported(stray, "vllm") - VLLM_PUBLIC == {"vllm.v1.engine.async_llm", "vllm.envs"}


def test_the_environment_is_read_in_one_place() -> None:
    """``settings.py`` alone, and who makes the environment of a child or of a library (named here)."""
    makers = {
        "cli/fetch.py",
        "engines/models/convert.py",
        "engines/models/hub.py",
        "engines/vllm/cpu.py",
        "engines/vllm/engine.py",
        "engines/training/datasets/check.py",
        "engines/training/trainer/__main__.py",
        "launcher/serve.py",
        "launcher/venv.py",
        "tasks/worker/bootsteps.py",
        "tasks/worker/training/bootstep.py",
        "tasks/worker/training/trainer_process.py",
        "settings.py",
        "telemetry/exposition.py",
        "telemetry/process_files.py",
    }
    readers = {
        str(path.relative_to(ROOT)) for path in sources() if re.search(r"os\.(environ|getenv)", path.read_text())
    }
    assert readers - makers == set()
