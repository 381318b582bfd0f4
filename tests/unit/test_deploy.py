"""What is shipped for other programs says what the Procfile and the settings say."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.serve import procfile
from settings import ROOT, Settings

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
#: Unit and container of each process of the Procfile.
UNIT_OF = {
    "web": "web",
    "grpc": "grpc",
    "gpu-infer": "infer@",
    "gpu-train": "train",
    "cpu-work": "work",
    "flower": "flower",
}
SERVICE_OF = {name: unit.removesuffix("@") for name, unit in UNIT_OF.items()}


def commands() -> dict[str, list[str]]:
    return {name: shlex.split(command) for name, command in procfile(ROOT / "Procfile").items()}


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def variables(text: str) -> set[str]:
    return set(re.findall(r"\b(?:CY_LLM_[A-Z_]+|REDIS_URL|DATABASE_URL)\b", text))


def known() -> set[str]:
    from dataclasses import fields

    return {each.metadata["variable"] for each in fields(Settings)}


@pytest.mark.parametrize("name", sorted(UNIT_OF))
def test_units_run_what_the_procfile_runs(name: str) -> None:
    text = (DEPLOY / "systemd" / f"cy-llm-{UNIT_OF[name]}.service").read_text()
    [line] = re.findall(r"^ExecStart=/opt/cy-llm/\.venv/bin/(.*)$", text, re.MULTILINE)
    if name == "gpu-infer":
        # One for each card.
        line = line.replace("infer%i@", "infer@").replace(" --gpu %i", "")
    assert shlex.split(line.replace("%%", "%")) == commands()[name]


@pytest.mark.parametrize("name", sorted(SERVICE_OF))
def test_containers_run_what_the_procfile_runs(name: str) -> None:
    expected = commands()[name]
    if name == "flower":
        # Inside its container; the port is published on loopback alone.
        expected = [word.replace("127.0.0.1", "0.0.0.0") for word in expected]
        assert compose()["services"]["flower"]["ports"] == ["127.0.0.1:5555:5555"]
    assert compose()["services"][SERVICE_OF[name]]["command"] == expected


def test_every_variable_is_a_setting() -> None:
    texts = [path.read_text() for path in DEPLOY.rglob("*") if path.is_file() and path.suffix not in (".json",)]
    assert set().union(*map(variables, texts)) - known() == set()


def test_dockerfiles_copy_what_there_is() -> None:
    for path in (DEPLOY / "docker").iterdir():
        text = path.read_text()
        for source in re.findall(r"^COPY (\S+) ", text, re.MULTILINE):
            assert source == "." or list(ROOT.glob(source)), (path.name, source)
        [command] = re.findall(r"^CMD (.*)$", text, re.MULTILINE)
        assert json.loads(command) in commands().values()
    # What is secret, or large, stays outside.
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "var"} <= set(ignored)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    binaries = Path(sys.executable).parent
    for path in (DEPLOY / "systemd").iterdir():
        text = path.read_text().replace("/opt/cy-llm/.venv/bin", str(binaries)).replace("/opt/cy-llm", str(ROOT))
        (tmp_path / path.name).write_text(text.replace("User=cy-llm", "User=root"))
    names = [str(tmp_path / path.name.replace("@", "@0")) for path in UNITS]
    done = subprocess.run(["systemd-analyze", "verify", *names], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_compose_names_what_it_defines() -> None:
    document = compose()
    volumes = {
        volume.partition(":")[0]
        for service in document["services"].values()
        for volume in service.get("volumes", [])
        if not volume.startswith((".", "/"))
    }
    assert volumes <= set(document["volumes"])
    for service in document["services"].values():
        assert set(service.get("depends_on", {})) <= set(document["services"])
        assert "image" in service
        build = service.get("build")
        if build:
            assert (DEPLOY / build["context"] / build["dockerfile"]).resolve().is_file()
