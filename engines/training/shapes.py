"""The shapes that rows come in, and the samples that the trainer library wants.

A *row* is what the file holds, a *sample* what is learned from: a prompt and its completion, a
text, or (DPO) a prompt with a chosen and a rejected answer. A conversation gives one sample for
each answer in it, with everything before it as the prompt.
"""

from collections.abc import Iterable
from typing import Any

from engines.training.rows import MAX_PROBLEMS, DatasetError, Problem, whole
from engines.training.spec import Method

Sample = dict[str, Any]

_ROLES = ("system", "user", "assistant", "tool")
#: ShareGPT's speakers.
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

#: Shape -> the fields that a row of it has, in the order in which a row is recognised.
SHAPES = {
    "preference": ("prompt", "chosen", "rejected"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}


class _Bad(Exception):
    """A row that is not what its shape wants: the field and what was expected."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(description)
        self.field = field


def recognise(row: Any) -> str | None:
    """Return the shape of a row, or None."""
    if not isinstance(row, dict):
        return None
    return next((shape for shape, fields in SHAPES.items() if all(field in row for field in fields)), None)


def to_samples(
    rows: Iterable[tuple[int, Any]], method: str, shape: str = ""
) -> tuple[str, list[tuple[int, list[Sample]]]]:
    """Return the shape of the rows, and for each ``(line, its samples)``. Raises ``DatasetError``."""
    problems: list[Problem] = []
    found: list[tuple[int, list[Sample]]] = []
    for line, row in rows:
        if not shape:
            shape = recognise(row) or ""
            if not shape:
                known = "; ".join(", ".join(fields) for fields in SHAPES.values())
                raise DatasetError([Problem(line, "", f"no known kind of row; a row has one of these sets: {known}")])
        _require_method(shape, method)
        try:
            found.append((line, convert(shape, row)))
        except _Bad as error:
            problems.append(Problem(line, error.field, str(error)))
            if len(problems) >= MAX_PROBLEMS:
                break
    if problems:
        raise DatasetError(problems)
    if not found:
        raise whole("the dataset holds no row")
    return shape, found


def _require_method(shape: str, method: str) -> None:
    if (method == Method.DPO) != (shape == "preference"):
        wanted = "rows with prompt, chosen and rejected" if method == Method.DPO else "rows that show one answer"
        raise whole(f"method {method!r} needs {wanted}; these rows are of the kind {shape!r}")


def convert(shape: str, row: Any) -> list[Sample]:
    """Return the samples of one row."""
    if not isinstance(row, dict):
        raise _Bad("", f"a row must be an object, not {type(row).__name__}")
    for field in SHAPES[shape]:
        if field not in row:
            raise _Bad(field, f"the field {field!r} is missing (rows of this dataset are of the kind {shape!r})")
    if shape == "messages":
        return _answers(_messages(row["messages"], "messages"), "messages")
    if shape == "conversations":
        return _answers(_sharegpt(row["conversations"]), "conversations")
    if shape == "instruction":
        return [_instruction(row)]
    if shape == "text":
        return [{"text": _text(row["text"], "text")}]
    return [{field: _text_or_messages(row[field], field) for field in SHAPES[shape]}]


def _instruction(row: dict[str, Any]) -> Sample:
    instruction, given = _text(row["instruction"], "instruction"), row.get("input") or ""
    if not isinstance(given, str):
        raise _Bad("input", f"must be text, not {type(given).__name__}")
    middle = f"### Input:\n{given}\n\n" if given else ""
    prompt = f"### Instruction:\n{instruction}\n\n{middle}### Response:\n"
    return {"prompt": prompt, "completion": _text(row["output"], "output")}


def _answers(messages: list[dict[str, str]], field: str) -> list[Sample]:
    found = [
        {"prompt": messages[:index], "completion": [message]}
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and index > 0
    ]
    if not found:
        raise _Bad(field, "there is no answer in it: a message of the assistant behind another one is needed")
    return found


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise _Bad(field, f"must be text, not {type(value).__name__}")
    if not value.strip():
        raise _Bad(field, "must not be empty")
    return value


def _text_or_messages(value: Any, field: str) -> Any:
    return _messages(value, field) if isinstance(value, list) else _text(value, field)


def _messages(value: Any, field: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise _Bad(field, "must be a list of messages, each with role and content")
    found = []
    for index, message in enumerate(value):
        at = f"{field}[{index}]"
        if not isinstance(message, dict):
            raise _Bad(at, "a message must be an object with role and content")
        if message.get("role") not in _ROLES:
            raise _Bad(f"{at}.role", f"must be one of {', '.join(_ROLES)}, not {message.get('role')!r}")
        found.append({"role": message["role"], "content": _text(message.get("content"), f"{at}.content")})
    return found


def _sharegpt(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise _Bad("conversations", "must be a list of turns, each with from and value")
    found = []
    for index, turn in enumerate(value):
        at = f"conversations[{index}]"
        if not isinstance(turn, dict):
            raise _Bad(at, "a turn must be an object with from and value")
        role = _SPEAKERS.get(str(turn.get("from")))
        if role is None:
            raise _Bad(f"{at}.from", f"must be one of {', '.join(_SPEAKERS)}, not {turn.get('from')!r}")
        found.append({"role": role, "content": _text(turn.get("value"), f"{at}.value")})
    return found
