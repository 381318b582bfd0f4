"""From the wheel to a right answer: what a newcomer's first ``bin/serve`` does, behind its installing."""

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from settings import ROOT
from testing.served import ports, serving
from tests.conftest import require

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


def test_from_the_wheel_to_a_right_answer(tmp_path: Path) -> None:
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    folder = tmp_path / "s"
    folder.mkdir()
    shutil.copy(ROOT / "config.json", folder / "config.json")
    models = folder / "var" / "models"
    with serving(folder, **ports()) as served:
        served.wait_for_banner(400)
        assert "Serving the model 'demo' instead" not in served.output
        asked = subprocess.run(["bash", "-c", served.curl], capture_output=True, text=True, timeout=120, check=True)
        texts = [json.loads(line[6:]) for line in asked.stdout.splitlines() if line.startswith("data: {")]
        answer = "".join(chunk["choices"][0]["text"] for chunk in texts)
        assert "Tokyo" in answer, answer
    record = json.loads((models / "smollm2-135m" / "cy-llm-model.json").read_text())
    assert record["dtype"] in ("bfloat16", "float32")
    # The second start fetches nothing.
    with serving(folder, **ports(), PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path)) as served:
        served.wait_for_banner(200)
        assert "fetching" not in served.output
