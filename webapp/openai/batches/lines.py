"""The lines of a batch's input file: found, checked, read again one by one."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from text import NotText, decode, has_control_characters, require_whole_characters

#: OpenAI's bounds.
MAX_LINES = 50_000
MAX_EMBEDDINGS = 50_000
_MAX_ID = 512
_MAX_DEPTH = 200
#: Faults that are told of one file.
_MAX_FAULTS = 100
_BOM = b"\xef\xbb\xbf"
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")
_MEMBERS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True)
class Line:
    """Where a request lies in the file."""

    #: From 1, blank lines counted.
    number: int
    offset: int
    #: Bytes.
    length: int
    #: As the body names it; empty where it names none, or nothing that can be a name.
    model: str = ""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file. ``line`` is None where it is the whole of it."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "line": self.line, "param": self.param}


@dataclass(frozen=True)
class Scan:
    """What is in a file. With faults it cannot be run."""

    lines: list[Line]
    faults: list[Fault]
    #: The model of the first line; empty where it names none.
    model: str


def scan(path: Path, endpoint: str) -> Scan:
    """Look through a whole file, keeping none of it. Raises ``OSError``."""
    lines: list[Line] = []
    faults: list[Fault] = []
    seen: dict[str, int] = {}
    model, inputs = "", 0
    names: dict[str, str] = {}
    for line, text in _texts(path):
        fault = None
        try:
            request = _parse(text)
        except ValueError as error:
            request, fault = {}, Fault("invalid_json_line", f"This line is not a JSON object: {error}", line.number)
        fault = fault or _fault(request, endpoint, line.number, seen)
        if fault is not None:
            faults.append(fault)
            if len(faults) >= _MAX_FAULTS:
                break
            continue
        seen[request["custom_id"]] = line.number
        name = _model(request["body"])
        # One text for all lines that name it.
        lines.append(replace(line, model=names.setdefault(name, name)))
        model = model or name
        if endpoint == "/v1/embeddings":
            given = request["body"].get("input")
            inputs += len(given) if isinstance(given, list) else 1
        if len(lines) > MAX_LINES or inputs > MAX_EMBEDDINGS:
            bound = f"{MAX_LINES} requests" if len(lines) > MAX_LINES else f"{MAX_EMBEDDINGS} embeddings"
            faults.append(Fault("too_many_tasks", f"The file has more than {bound}"))
            break
    if not lines and not faults:
        faults.append(Fault("empty_file", "The file holds no request"))
    return Scan(lines, faults, model)


def read(path: Path, line: Line) -> dict[str, Any]:
    """Return a request that :func:`scan` found right. Raises ``OSError``."""
    with path.open("rb") as file:
        file.seek(line.offset)
        return _parse(file.readline().strip())


def _texts(path: Path) -> Iterator[tuple[Line, bytes]]:
    with path.open("rb") as file:
        offset = 0
        for number, text in enumerate(file, 1):
            begins = offset
            offset += len(text)
            if number == 1 and text.startswith(_BOM):
                begins, text = begins + len(_BOM), text[len(_BOM) :]
            text = text.strip()
            if text:
                yield Line(number, begins, len(text)), text


def _model(body: dict[str, Any]) -> str:
    name = body.get("model")
    return name if isinstance(name, str) and not has_control_characters(name) else ""


def _require_shallow(text: bytes) -> None:
    """Raises ``ValueError``: what is read in one thread must not be too deep for another's."""
    if text.count(b"{") + text.count(b"[") <= _MAX_DEPTH:
        return
    depth = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", text)):
        depth += 1 if bracket in b"[{" else -1
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")


def _parse(text: bytes) -> dict[str, Any]:
    """Raises ``ValueError``."""
    _require_shallow(text)
    try:
        written = decode(text)
        found = json.loads(written, parse_constant=_refuse_constant)
        require_whole_characters(written, found)
    except (NotText, RecursionError) as error:
        raise ValueError(str(error) or "it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"it is {type(found).__name__}")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _fault(request: dict[str, Any], endpoint: str, number: int, seen: dict[str, int]) -> Fault | None:
    for name in _MEMBERS:
        if request.get(name) is None:
            return Fault("missing_required_parameter", f"'{name}' is missing", number, name)
    custom_id, body = request["custom_id"], request["body"]
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= _MAX_ID:
        return Fault("invalid_custom_id", f"'custom_id' is text of 1 to {_MAX_ID} characters", number, "custom_id")
    if custom_id in seen:
        message = f"'custom_id' is that of line {seen[custom_id]} too: each line needs its own"
        return Fault("duplicate_custom_id", message, number, "custom_id")
    if request["method"] != "POST":
        return Fault("invalid_method", "'method' must be POST", number, "method")
    if request["url"] != endpoint:
        return Fault("url_mismatch", f"'url' must be the batch's endpoint, '{endpoint}'", number, "url")
    if not isinstance(body, dict):
        return Fault("invalid_request", "'body' must be an object", number, "body")
    if body.get("stream"):
        return Fault("invalid_request", "'stream': a batch's answers are whole", number, "body.stream")
    return None
