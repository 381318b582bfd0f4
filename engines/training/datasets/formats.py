"""The formats that rows come in, and the samples that the trainer library wants.

A *row* is what the file holds, a *sample* what is learned from: a prompt and its completion, a
text, or (DPO) a prompt with a chosen and a rejected answer. A conversation gives one sample for
each answer in it, with everything before it as the prompt.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from engines.training.datasets.bad_row import BadRow, text
from engines.training.datasets.rows import MAX_PROBLEMS, DatasetError, Problem, at_line, whole
from engines.training.datasets.tool_calls import Tool, tools_of
from engines.training.datasets.turns import Message, messages, refuse_tools, sharegpt, with_system
from engines.training.spec import Method
from text import quote

Sample = dict[str, Any]

#: Format -> the fields that a row of it has, in the order in which a row is detected.
FORMATS = {
    "preference": ("prompt", "chosen", "rejected"),
    "openai_preference": ("input", "preferred_output", "non_preferred_output"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
_GUIDE = {"preferred_completion": "preferred_output", "non_preferred_completion": "non_preferred_output"}
#: Formats whose rows say which of two answers is better.
_PREFERENCES = ("preference", "openai_preference")
#: Further fields that a row may have and that are used.
_OPTIONAL = ("input", "system", "history")
#: Every column that a CSV may have, for its header's spelling.
COLUMNS = tuple(dict.fromkeys([*(name for names in FORMATS.values() for name in names), *_OPTIONAL]))


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
        #: Rows whose answer is empty: they teach nothing, and are left out.
        self.empty = 0
        #: Whether the rows hold messages or plain text; None before the first. One data set holds one of them.
        self._chat: bool | None = None

    def read(self, rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Sequence[Sample]]]:
        """Yield ``(line, samples)`` of each row; the last sample of a row is its longest.

        Raises ``DatasetError`` at the end of the rows, or after ``MAX_PROBLEMS`` bad ones.
        """
        problems: list[Problem] = []
        for line, given in rows:
            row = _renamed(given)
            if not self.format:
                self.format = _require_format(line, row)
            _require_method(self.format, self._method)
            try:
                if _is_empty(self.format, row):
                    self.empty += 1
                    continue
                samples = convert(self.format, row)
                self._require_same_kind(samples)
            except BadRow as error:
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
            raise whole(f"every row has an empty answer ({self.empty} rows)" if self.empty else "it holds no row")

    def _require_same_kind(self, samples: Sequence[Sample]) -> None:
        """Columns hold one kind of value: text in one row and messages in the next cannot be trained on together."""
        chat = isinstance(samples[-1].get("prompt"), list)
        if self._chat is None:
            self._chat = chat
        elif chat != self._chat:
            kinds = ("plain text", "messages")
            raise BadRow("prompt", f"has {kinds[chat]}, and the rows before have {kinds[not chat]}: use one of them")


class Answers(Sequence[Sample]):
    """The samples of a conversation, made when they are asked for: all of them together are quadratic in its length."""

    def __init__(self, messages: list[Message], answers: list[int], tools: list[Tool]) -> None:
        self._messages = messages
        self._tools = tools
        #: Where the answers stand.
        self._answers = answers

    def __len__(self) -> int:
        return len(self._answers)

    def __getitem__(self, index: Any) -> Any:
        at = self._answers[index]
        sample = {"prompt": self._messages[:at], "completion": [self._messages[at]]}
        return {**sample, "tools": self._tools} if self._tools else sample


def _renamed(row: Any) -> Any:
    """OpenAI's reference has other names for the answers of a preference than its guide."""
    if not isinstance(row, dict) or "preferred_completion" not in row:
        return row
    return {_GUIDE.get(name, name): value for name, value in row.items()}


def _require_format(line: int, row: Any) -> str:
    format = detect_format(row)
    if format is not None:
        return format
    known = "; ".join(", ".join(fields) for fields in FORMATS.values())
    if isinstance(row, list):
        raise at_line(line, "a row is an array; each row must be an object")
    if not isinstance(row, dict):
        raise at_line(line, f"a row must be an object, not {type(row).__name__}")
    names = ", ".join(quote(name) for name in list(row)[:10]) or "no field"
    folded = {str(name).strip().lower() for name in row}
    intended = next((fields for fields in FORMATS.values() if set(fields) <= folded), None)
    hint = f"; did you mean {', '.join(intended)}?" if intended else ""
    raise at_line(line, f"no known kind of row: it has {names}{hint} A row has one of these sets: {known}")


def _require_method(format: str, method: str) -> None:
    if (method == Method.DPO) != (format in _PREFERENCES):
        wanted = "rows with prompt, chosen and rejected" if method == Method.DPO else "rows that show one answer"
        raise whole(f"method {method!r} needs {wanted}; these rows are of the kind {format!r}")


def _is_empty(format: str, row: Any) -> bool:
    """Whether a row's answer is empty; some known data sets hold a few of those."""
    name = {"instruction": "output", "prompt_completion": "completion"}.get(format)
    value = row.get(name) if isinstance(row, dict) and name else None
    return isinstance(value, str) and not value.strip()


def convert(format: str, row: Any) -> Sequence[Sample]:
    """Return the samples of one row, the longest last. Raises ``BadRow``."""
    if not isinstance(row, dict):
        raise BadRow("", f"a row must be an object, not {type(row).__name__}")
    for field in FORMATS[format]:
        if field not in row:
            raise BadRow(field, f"the field {field!r} is missing (rows of this dataset are of the kind {format!r})")
    if format == "messages":
        tools = tools_of(row)
        found, unlearnt = messages(row["messages"], "messages", with_calls=True)
        shift = len(found)
        found = with_system(row, found)
        shift = len(found) - shift
        return _answers(found, "messages", {index + shift for index in unlearnt}, tools)
    refuse_tools(row)
    if format == "conversations":
        return _answers(sharegpt(row), "conversations", set())
    if format == "instruction":
        return [_instruction(row)]
    if format == "text":
        return [{"text": text(row["text"], "text")}]
    if format == "openai_preference":
        return [_openai_preference(row)]
    return [_prompted(row, FORMATS[format])]


def _instruction(row: dict[str, Any]) -> Sample:
    """Alpaca's template; a row's own system prompt and earlier turns come first."""
    parts = []
    system = row.get("system")
    if system not in (None, ""):
        parts.append(text(system, "system") + "\n\n")
    history = row.get("history") or []
    if not isinstance(history, list):
        raise BadRow("history", "must be a list of pairs, each a question and its answer")
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"history[{index}]", "must be a pair: a question and its answer")
        asked, answered = text(pair[0], f"history[{index}][0]"), text(pair[1], f"history[{index}][1]")
        parts.append(f"{_question(asked, '')}{answered}\n\n")
    given = row.get("input")
    given = "" if given is None else text(given, "input", may_be_empty=True)
    parts.append(_question(text(row["instruction"], "instruction"), given))
    return {"prompt": "".join(parts), "completion": text(row["output"], "output")}


def _question(instruction: str, given: str) -> str:
    middle = f"### Input:\n{given}\n\n" if given else ""
    return f"### Instruction:\n{instruction}\n\n{middle}### Response:\n"


def _answers(found: list[Message], field: str, unlearnt: set[int], tools: Sequence[Tool] = ()) -> Answers:
    answers = [index for index, message in enumerate(found) if message["role"] == "assistant" and index > 0]
    if not answers:
        raise BadRow(field, "there is no answer in it: a message of the assistant after another one is needed")
    learnt = [index for index in answers if index not in unlearnt]
    if not learnt:
        raise BadRow(field, "every answer in it has the weight 0, so there is nothing to learn")
    return Answers(found, learnt, list(tools))


def _prompted(row: dict[str, Any], fields: Sequence[str]) -> Sample:
    """A prompt with its completion, or with two answers: all of it plain text, or all of it messages."""
    if not any(isinstance(row[field], list) for field in fields):
        return {field: text(row[field], field) for field in fields}
    found = {}
    for field in fields:
        if isinstance(row[field], list):
            found[field], unlearnt = messages(row[field], field)
            if unlearnt:
                raise BadRow(field, "has messages with a weight, which only rows of 'messages' may have")
        else:
            role = "user" if field == "prompt" else "assistant"
            found[field] = [{"role": role, "content": text(row[field], field)}]
    prompt = with_system(row, found["prompt"])
    endings = {field: _without_prompt(found[field], found["prompt"], field) for field in fields if field != "prompt"}
    return {"prompt": prompt, **endings}


def _without_prompt(ending: list[Message], prompt: list[Message], field: str) -> list[Message]:
    """Return the answer alone: on the hub, preference rows repeat the prompt in both answers."""
    rest = ending[len(prompt) :] if ending[: len(prompt)] == prompt else ending
    if not rest:
        raise BadRow(field, "repeats the prompt and has no answer")
    if rest[0]["role"] != "assistant":
        description = "must begin with the assistant's answer, or repeat the whole prompt before it"
        raise BadRow(f"{field}[0].role", description)
    return rest


def _openai_preference(row: dict[str, Any]) -> Sample:
    """OpenAI's preference rows: ``input.messages``, ``preferred_output``, ``non_preferred_output``."""
    given = row["input"]
    if not isinstance(given, dict) or "messages" not in given:
        raise BadRow("input", "must be an object with messages")
    refuse_tools(given)
    prompt, _ = messages(given["messages"], "input.messages")
    answers = {}
    for ours, field in (("chosen", "preferred_output"), ("rejected", "non_preferred_output")):
        found, _ = messages(row[field], field)
        answers[ours] = _without_prompt(found, prompt, field)
    return {"prompt": prompt, **answers}
