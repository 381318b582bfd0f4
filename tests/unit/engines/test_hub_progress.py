"""What is said of a download that goes on."""

import json
import time
from pathlib import Path

import pytest

from engines.models import hub


def test_it_does_not_begin_below_what_was_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The part may have become a file by the time of the first word, and not be counted yet."""
    part = tmp_path / f"weights{hub._PART}"
    part.write_bytes(b"x" * 900)
    progress = hub._Progress(tmp_path, have=10, total=1000)
    part.rename(tmp_path / "weights")
    progress.start()
    try:
        ends, output = time.monotonic() + 10, ""
        while not output and time.monotonic() < ends:
            output += capsys.readouterr().out
            time.sleep(0.01)
    finally:
        progress.stop()
    assert json.loads(output.splitlines()[0]) == {"have": 910, "total": 1000}
