"""The formats that rows come in, and the samples that the trainer library wants.

A *row* is what the file holds, a *sample* what is learned from: a prompt and its completion, a
text, or (DPO) a prompt with a chosen and a rejected answer. A conversation gives one sample for
each answer in it, with everything before it as the prompt.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from engines.training.datasets.rows import MAX_PROBLEMS, DatasetError, Problem, whole
from engines.training.spec import Method

Sample = dict[str, Any]

_ROLES = ("system", "user", "assistant", "tool")
#: ShareGPT's speakers.
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

#: Format -> the fields that a row of it has, in the order in which a row is detected.
FORMATS = {
    "preference": ("prompt", "chosen", "rejected"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}


class _BadRow(Exception):
    """A row that is not what its format wants: the field and what was expected."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(description)
        self.field = field


def detect_format(row: Any) -> str | None:
    """Return the format of a row, or None."""
    if not isinstance(row, dict):
        return None
    return next((format for format, fields in FORMATS.items() if all(field in row for field in fields)), None)


class SampleReader:
    """Turns rows into samples, one row at a time."""

    def __init__(self, method: str, format: str = "") -> None:
        self._method = method
        #: Found out with the first row, where it was not given.
        self.format = format
        self.rows = 0

    def read(self, rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Sequence[Sample]]]:
        """Yield ``(line, samples)`` of each row; the last sample of a row is its longest.

        Raises ``DatasetError`` at the end of the rows, or after ``MAX_PROBLEMS`` bad ones.
        """
        problems: list[Problem] = []
        for line, row in rows:
            if not self.format:
                self.format = _require_format(line, row)
            _require_method(self.format, self._method)
            try:
                samples = convert(self.format, row)
            except _BadRow as error:
                problems.append(Problem(line, error.field, str(error)))
                if len(problems) >= MAX_PROBLEMS:
                    break
                continue
            self.rows += 1
            if not problems:
                yield line, samples
        if problems:
            raise DatasetError(problems)
        if not self.rows:
            raise whole("the dataset holds no row")


class Answers(Sequence[Sample]):
    """The samples of a conversation, made when they are asked for: all of them together are quadratic in its length."""

    def __init__(self, messages: list[dict[str, str]], answers: list[int]) -> None:
        self._messages = messages
        #: Where the answers stand.
        self._answers = answers

    def __len__(self) -> int:
        return len(self._answers)

    def __getitem__(self, index: Any) -> Any:
        at = self._answers[index]
        return {"prompt": self._messages[:at], "completion": [self._messages[at]]}


def _require_format(line: int, row: Any) -> str:
    format = detect_format(row)
    if format is None:
        known = "; ".join(", ".join(fields) for fields in FORMATS.values())
        raise DatasetError([Problem(line, "", f"no known kind of row; a row has one of these sets: {known}")])
    return format


def _require_method(format: str, method: str) -> None:
    if (method == Method.DPO) != (format == "preference"):
        wanted = "rows with prompt, chosen and rejected" if method == Method.DPO else "rows that show one answer"
        raise whole(f"method {method!r} needs {wanted}; these rows are of the kind {format!r}")


def convert(format: str, row: Any) -> Sequence[Sample]:
    """Return the samples of one row, the longest last. Raises ``_BadRow``."""
    if not isinstance(row, dict):
        raise _BadRow("", f"a row must be an object, not {type(row).__name__}")
    for field in FORMATS[format]:
        if field not in row:
            raise _BadRow(field, f"the field {field!r} is missing (rows of this dataset are of the kind {format!r})")
    if format == "messages":
        return _answers(_messages(row["messages"], "messages"), "messages")
    if format == "conversations":
        return _answers(_sharegpt(row["conversations"]), "conversations")
    if format == "instruction":
        return [_instruction(row)]
    if format == "text":
        return [{"text": _text(row["text"], "text")}]
    return [{field: _text_or_messages(row[field], field) for field in FORMATS[format]}]


def _instruction(row: dict[str, Any]) -> Sample:
    instruction, given = _text(row["instruction"], "instruction"), row.get("input") or ""
    if not isinstance(given, str):
        raise _BadRow("input", f"must be text, not {type(given).__name__}")
    middle = f"### Input:\n{given}\n\n" if given else ""
    prompt = f"### Instruction:\n{instruction}\n\n{middle}### Response:\n"
    return {"prompt": prompt, "completion": _text(row["output"], "output")}


def _answers(messages: list[dict[str, str]], field: str) -> Answers:
    found = [index for index, message in enumerate(messages) if message["role"] == "assistant" and index > 0]
    if not found:
        raise _BadRow(field, "there is no answer in it: a message of the assistant after another one is needed")
    return Answers(messages, found)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise _BadRow(field, f"must be text, not {type(value).__name__}")
    if not value.strip():
        raise _BadRow(field, "must not be empty")
    return value


def _text_or_messages(value: Any, field: str) -> Any:
    return _messages(value, field) if isinstance(value, list) else _text(value, field)


def _messages(value: Any, field: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise _BadRow(field, "must be a list of messages, each with role and content")
    found = []
    for index, message in enumerate(value):
        at = f"{field}[{index}]"
        if not isinstance(message, dict):
            raise _BadRow(at, "a message must be an object with role and content")
        if message.get("role") not in _ROLES:
            raise _BadRow(f"{at}.role", f"must be one of {', '.join(_ROLES)}, not {message.get('role')!r}")
        found.append({"role": message["role"], "content": _text(message.get("content"), f"{at}.content")})
    return found


def _sharegpt(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise _BadRow("conversations", "must be a list of turns, each with from and value")
    found = []
    for index, turn in enumerate(value):
        at = f"conversations[{index}]"
        if not isinstance(turn, dict):
            raise _BadRow(at, "a turn must be an object with from and value")
        role = _SPEAKERS.get(str(turn.get("from")))
        if role is None:
            raise _BadRow(f"{at}.from", f"must be one of {', '.join(_SPEAKERS)}, not {turn.get('from')!r}")
        found.append({"role": role, "content": _text(turn.get("value"), f"{at}.value")})
    return found
