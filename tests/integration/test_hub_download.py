"""A model of the hub, against a server that speaks its protocol: cuts, kills, gates, proxies, foreign caches."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from engines.errors import EngineStartError
from engines.model_spec import ModelSpec
from engines.models.weights import get_weights
from settings import ROOT
from testing.hub import SHA, Hub, serving_hub
from tests.conftest import require

NAME = "acme/demo"
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    require(find_spec("huggingface_hub") is not None, "huggingface_hub is not installed (bin/test installs it)")
    folder = tmp_path / "repository"
    shutil.copytree(ROOT / "models" / "demo", folder)
    (folder / "README.md").write_text("not needed")
    (folder / "pytorch_model.bin").write_bytes(b"x" * 100_000)
    with serving_hub(Hub({NAME: folder})) as started:
        yield started


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    home = tmp_path / "home"
    ours = {"PYTHONPATH": str(ROOT), "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.endpoint}
    return {**kept, **ours}


def fetch(environment: dict[str, str], name: str = NAME, **args: Any) -> tuple[Path, list[tuple[int, int, int]]]:
    told: list[tuple[int, int, int]] = []
    spec = ModelSpec(id="m", model_path=name, location=name, engine_args=args)
    got = asyncio.run(get_weights(spec, Path("/nowhere"), environment, lambda *each: told.append(each)))
    return Path(got.location), told


def refusal(environment: dict[str, str], name: str = NAME) -> str:
    with pytest.raises(EngineStartError) as caught:
        fetch(environment, name)
    return str(caught.value)


def same(folder: Path, hub: Hub, name: str = WEIGHTS) -> bool:
    return (folder / name).read_bytes() == (hub.repositories[NAME] / name).read_bytes()


def test_what_is_needed_is_fetched_once(hub: Hub, environment: dict[str, str]) -> None:
    folder, told = fetch(environment)
    assert folder.name == SHA and same(folder, hub)
    assert not (folder / "README.md").exists() and not (folder / "pytorch_model.bin").exists()
    assert told and all(have <= total for have, total, _ in told)
    hub.asked.clear()
    assert fetch(environment)[0] == folder
    assert [path for _, path, _ in hub.asked if "/resolve/" in path] == []


def test_a_download_that_is_cut_goes_on_where_it_was(hub: Hub, environment: dict[str, str]) -> None:
    hub.cuts = 3
    folder, _ = fetch(environment)
    assert same(folder, hub)
    starts = [first for method, path, first in hub.asked if method == "GET" and path.endswith(WEIGHTS)]
    assert len(starts) >= 4 and starts[-1] >= 3 * hub.cut_after


def test_a_killed_download_is_gone_on_with(hub: Hub, environment: dict[str, str]) -> None:
    hub.rate = 2_000_000
    command = [sys.executable, "-m", "engines.models.hub", NAME]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("have", 0) > 1_000_000:
            break
    process.kill()
    process.wait(10)
    process.stdout.close()
    hub.rate = 0
    hub.asked.clear()
    folder, told = fetch(environment)
    assert same(folder, hub)
    starts = [first for method, path, first in hub.asked if method == "GET" and path.endswith(WEIGHTS)]
    assert starts and starts[0] > 1_000_000
    assert told == [] or told[0][0] > 1_000_000


def test_progress_never_goes_back(hub: Hub, environment: dict[str, str]) -> None:
    hub.rate, hub.cuts = 3_000_000, 1
    _, told = fetch(environment)
    have = [each for each, _, _ in told]
    assert have == sorted(have) and len(have) > 1
    assert max(rate for _, _, rate in told) > 0


def test_what_is_not_what_the_hub_describes_is_refused_and_fetched_again(hub: Hub, environment: dict[str, str]) -> None:
    hub.corrupt = True
    assert "another hash" in refusal(environment)
    hub.corrupt = False
    assert same(fetch(environment)[0], hub)


def test_a_gated_model_says_what_to_do_and_tells_no_token(hub: Hub, environment: dict[str, str]) -> None:
    hub.gated = {NAME: "hf_right"}
    assert "accept its licence" in refusal(environment)
    words = refusal({**environment, "HF_TOKEN": "hf_wrong"})
    assert "HF_TOKEN" in words and "hf_wrong" not in words
    assert same(fetch({**environment, "HF_TOKEN": "hf_right"})[0], hub)


def test_a_name_that_the_hub_lacks(environment: dict[str, str]) -> None:
    assert "no model acme/nothing" in refusal(environment, "acme/nothing")


def test_a_proxy_s_page_is_no_model(hub: Hub, environment: dict[str, str]) -> None:
    hub.html = True
    assert "not in this host's cache" in refusal(environment)
    hub.html = False
    fetch(environment)
    # What is there whole is used while the hub cannot be asked.
    hub.html = True
    assert same(fetch(environment)[0], hub)
    hub.html = False
    assert same(fetch({**environment, "HF_HUB_OFFLINE": "1"})[0], hub)


def test_offline_with_half_a_model(hub: Hub, environment: dict[str, str]) -> None:
    folder, _ = fetch(environment)
    (folder / WEIGHTS).unlink()
    words = refusal({**environment, "HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE" in words and "half" in words
    assert same(fetch(environment)[0], hub)


def test_a_pinned_revision_stays(hub: Hub, environment: dict[str, str]) -> None:
    folder, _ = fetch(environment, revision=SHA)
    assert folder.name == SHA
    assert any(f"/revision/{SHA}" in path for _, path, _ in hub.asked)


def test_a_model_of_sentences_comes_with_its_steps(hub: Hub, environment: dict[str, str]) -> None:
    repository = hub.repositories[NAME]
    steps = [{"path": "", "type": "models.Transformer"}, {"path": "1_Pooling", "type": "models.Pooling"}]
    (repository / "modules.json").write_text(json.dumps(steps))
    (repository / "1_Pooling").mkdir()
    (repository / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    folder, _ = fetch(environment)
    assert (folder / "1_Pooling" / "config.json").is_file()


def test_too_little_room_is_told_before(hub: Hub, environment: dict[str, str], tmp_path: Path) -> None:
    # The file system's answer is the one thing that is made up.
    script = (
        "import shutil, sys, collections; from engines.models import hub\n"
        "shutil.disk_usage = lambda path: collections.namedtuple('U', 'total used free')(9, 9, 1 << 20)\n"
        f"sys.exit(hub.main({NAME!r}, None))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert "1 MiB are free" in json.loads(done.stdout.splitlines()[-1])["error"]
    assert not any("/resolve/" in path for _, path, _ in hub.asked)


def test_a_cache_of_somebody_else(hub: Hub, environment: dict[str, str]) -> None:
    # Root may write everywhere, so that the file system's answer is made up.
    script = (
        "import sys; from engines.models import hub\n"
        "def refuse(*_): raise PermissionError(13, 'Permission denied')\n"
        "hub._get_large = refuse\n"
        f"sys.exit(hub.main({NAME!r}, None))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=ROOT)
    words = json.loads(done.stdout.splitlines()[-1])["error"]
    assert "cannot be written to as" in words and environment["HF_HOME"] in words


def test_two_ask_at_once(hub: Hub, environment: dict[str, str]) -> None:
    hub.rate = 4_000_000
    command = [sys.executable, "-m", "engines.models.hub", NAME]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, cwd=ROOT) for _ in range(2)]
    for process in both:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert same(Path(json.loads(out.splitlines()[-1])["path"]), hub)
    # One download for both.
    assert len([path for method, path, _ in hub.asked if method == "GET" and path.endswith(WEIGHTS)]) == 1
