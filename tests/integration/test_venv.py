"""``launcher/venv.py`` with real uv and pip, on a small set."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launcher.venv import uv_options
from settings import ROOT

_SET = "toposort==1.10\n"


def install(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "requirements.txt").write_text(_SET)
    command = [sys.executable, str(ROOT / "launcher" / "venv.py"), "requirements.txt"]
    environment = {**os.environ, **env}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def has_package(folder: Path) -> bool:
    python = folder / ".venv" / "bin" / "python"
    return subprocess.run([python, "-c", "import toposort"], capture_output=True, check=False).returncode == 0


@pytest.mark.full
def test_it_installs_once_and_mends_what_is_broken(tmp_path: Path) -> None:
    first = install(tmp_path)
    assert first.returncode == 0, first.stderr
    assert has_package(tmp_path)
    assert install(tmp_path).stdout == "", "there is nothing to do"
    # Half-made: the Python is there, what was installed is not whole.
    next((tmp_path / ".venv").glob(".installed-*")).unlink()
    assert install(tmp_path).returncode == 0
    # Its Python is gone.
    (tmp_path / ".venv" / "bin" / "python").unlink()
    again = install(tmp_path)
    assert "made anew" in again.stdout
    assert has_package(tmp_path)
    # Moved with its folder.
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(tmp_path / ".venv", moved / ".venv")
    assert "made anew" in install(moved).stdout
    assert has_package(moved)


def test_without_uv_pip_installs(tmp_path: Path) -> None:
    """An index that has no uv: the folder has the package alone."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), _SET.strip()]
    subprocess.run(fetch, check=True, timeout=120)
    (tmp_path / "p").mkdir()
    done = install(tmp_path / "p", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))
    assert done.returncode == 0, done.stderr
    assert "pip does" in done.stdout
    assert has_package(tmp_path / "p")


def test_what_cannot_be_had_is_said(tmp_path: Path) -> None:
    done = install(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode == 1
    assert "install.log" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_starts_at_once(tmp_path: Path) -> None:
    found: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda: found.append(install(tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert [done.returncode for done in found] == [0, 0]
    assert sum("installing" in line for done in found for line in done.stdout.splitlines() if "packages" in line) == 1


@pytest.mark.parametrize(
    ("configuration", "options"),
    [
        ({}, []),
        ({"index-url": "https://a/simple"}, ["--default-index", "https://a/simple"]),
        ({"extra-index-url": "https://b https://c"}, ["--index", "https://b", "--index", "https://c"]),
        ({"find-links": "/wheels"}, ["--find-links", "/wheels"]),
        ({"trusted-host": "h"}, ["--allow-insecure-host", "h"]),
        ({"no-index": "true"}, ["--no-index"]),
    ],
)
def test_pip_s_configuration_is_uv_s(configuration: dict[str, str], options: list[str]) -> None:
    assert uv_options(configuration) == [*options, "--index-strategy", "unsafe-best-match"]
