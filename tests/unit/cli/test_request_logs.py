"""One request's story, out of the files of all processes."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.__main__ import cli

ID = "gen-0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CY_LLM_VAR", str(tmp_path))
    (tmp_path / "log").mkdir()
    write(tmp_path / "log" / "web.log", line("03", "Answered", request_id=ID, face="http", traceId="t-1\x1b[2J"))
    write(
        tmp_path / "log" / "gpu-infer.log",
        line("02", "Request done", request_id=ID, outcome="finished"),
        line("01", "Request done", request_id="gen-another", outcome="finished"),
        line("04", "Answered", path=f"/api/v1/inference/{ID}"),
        "no JSON, and it names " + ID,
    )
    return tmp_path / "log"


def line(second: str, message: str, **more: Any) -> str:
    return json.dumps({"time": f"2026-11-29 01:00:{second},000", "level": "INFO", "message": message, **more})


def write(path: Path, *lines: str) -> None:
    path.write_text("\n".join(lines) + "\n")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["logs", *arguments])


@pytest.mark.parametrize("name", [ID, f"chatcmpl-{ID[4:]}", f"resp_{ID[4:]}"])
def test_every_process_in_the_order_of_time(folder: Path, name: str) -> None:
    result = run(name)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [words.split()[1][6:8] for words in lines] == ["02", "03", "04"]
    assert [words.split()[2] for words in lines] == ["gpu-infer", "web", "gpu-infer"]
    assert "outcome=finished" in lines[0]


def test_the_clients_own_id_and_no_escape_sequences(folder: Path) -> None:
    result = run("t-1\x1b[2J")
    assert len(result.output.splitlines()) == 1
    assert "\x1b" not in result.output
    assert "traceId=t-1\\x1b[2J" in result.output


def test_as_json(folder: Path) -> None:
    found = [json.loads(words) for words in run(ID, "--json").output.splitlines()]
    assert [each["process"] for each in found] == ["gpu-infer", "web", "gpu-infer"]
    assert found[1]["request_id"] == ID


def test_other_files_and_standard_input(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.txt"
    write(elsewhere, line("09", "Answered", request_id=ID))
    assert len(run(ID, "--file", str(elsewhere)).output.splitlines()) == 1
    piped = CliRunner().invoke(cli, ["logs", ID, "--file", "-"], input=line("05", "Answered", request_id=ID) + "\n")
    assert piped.exit_code == 0, piped.output
    assert "01:00:05" in piped.output


def test_nothing_found_says_where_it_looked(folder: Path) -> None:
    result = run("gen-unknown")
    assert result.exit_code == 1
    assert "no line about 'gen-unknown' in gpu-infer.log, web.log" in result.output
    for file in folder.iterdir():
        file.unlink()
    assert "name some with --file" in run(ID).output
