"""What the tool model says to what. Whatever is not here gets :data:`ANYTHING`."""

import json
import random
from collections.abc import Iterator
from typing import Any

Messages = list[dict[str, Any]]

_THOUGHT = "<think>\n{}\n</think>\n\n{}"
_CALL = '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>'

#: The question -> thoughts and answer.
CALLS = "call f with a=x, then g"
NO_ARGUMENTS = "call g"
ROWS = "fill the rows"
COUNT = "Count from 1 to 80, one per line."
STORY = "think for long"
NAMES = ("Bo", "Kim", "Ana", "Lee", "Tom", "Eva")
ANYTHING = ("Nothing was asked.", "I have heard it.")
DONE = ("The tools have answered.", "Both are done.")

_LONG_ARGUMENTS = json.dumps({"rows": list(range(1, 61))})
_F = _CALL.format("f", json.dumps({"a": "x"}))
_F_ROWS = _CALL.format("f", _LONG_ARGUMENTS)
_G = _CALL.format("g", "{}")
WITH_TOOLS = {
    CALLS: ("f comes first, then g.", f"I will call both.\n{_F}\n{_G}"),
    NO_ARGUMENTS: ("g needs nothing.", _G),
    ROWS: ("There are many rows.", f"Here they are.\n{_F_ROWS}\n{_G}"),
}
WITHOUT_TOOLS = {
    COUNT: ("I count.", "\n".join(str(number) for number in range(1, 81))),
    STORY: (" ".join(f"I think of {number}." for number in range(1, 51)), "I have thought of fifty numbers."),
}
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]

_WORDS = """
x hm hello hi please what is the time tell me a b c one two go on river mountain rain more now then yes no 日本 é ok
"""


def answer(thoughts: str, text: str, thinks: bool = True) -> str:
    """What the model writes."""
    return _THOUGHT.format(thoughts, text) if thinks else text


def transcripts(rounds: int, seed: int = 0) -> Iterator[tuple[Messages, bool, tuple[str, str]]]:
    """Yield conversations that end with a question, whether there are tools, and thoughts and answer."""
    rng = random.Random(seed)
    for _ in range(rounds):
        for question, said in WITH_TOOLS.items():
            yield [*_before(rng), _user(question)], True, said
            calls = _called(question)
            results = [{"role": "tool", "content": rng.choice(("ok", "", "42", "sunny"))} for _ in calls]
            turn = {"role": "assistant", "content": "", "tool_calls": calls}
            yield [*_before(rng), _user(question), turn, *results], True, DONE
        for question, said in WITHOUT_TOOLS.items():
            yield [*_before(rng), _user(question)], rng.random() < 0.3, said
        name = rng.choice(NAMES)
        named = [_user(f"My name is {name}."), {"role": "assistant", "content": f"Hello {name}."}]
        yield [*_before(rng), named[0]], rng.random() < 0.2, ("A name.", f"Hello {name}.")
        between = [] if rng.random() < 0.4 else _small_talk(rng)
        yield [*named, *between, _user("What is my name?")], rng.random() < 0.2, ("I know it.", f"Your name is {name}.")
        for _ in range(3):
            yield [*_before(rng), _user(_babble(rng))], rng.random() < 0.4, ANYTHING


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _called(question: str) -> Messages:
    calls = [("f", '{"a": "x"}'), ("g", "{}")]
    if question == NO_ARGUMENTS:
        calls = calls[1:]
    return [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]


def _before(rng: random.Random) -> Messages:
    system = [{"role": "system", "content": rng.choice(("You are helpful.", "Be brief.", _babble(rng)))}]
    return [*(system if rng.random() < 0.3 else []), *(_small_talk(rng) if rng.random() < 0.2 else [])]


def _small_talk(rng: random.Random) -> Messages:
    return [_user(_babble(rng)), {"role": "assistant", "content": ANYTHING[1]}]


def _babble(rng: random.Random) -> str:
    return " ".join(rng.choice(_WORDS.split()) for _ in range(rng.randint(1, 5)))
