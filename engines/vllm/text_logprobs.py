"""The measures of a text's own tokens, among those of a whole answer: thoughts and calls are measured too."""

from typing import Any


def keep_own(item: Any) -> None:
    """Leave a message of a response the measures of its own text alone, as its stream has them."""
    for part in getattr(item, "content", None) or ():
        measured = getattr(part, "logprobs", None)
        if measured:
            part.logprobs = _of_text(part.text, measured)


def _of_text(text: str, measured: list[Any]) -> list[Any]:
    """Return those whose tokens spell ``text``: the last ones that do, for thoughts come first."""
    spelled = [bytes(each.bytes) if each.bytes else each.token.encode() for each in measured]
    wanted, begin = text.encode(), 0
    at = b"".join(spelled).rfind(wanted)
    if at < 0:
        return measured
    found = []
    for each, token in zip(measured, spelled, strict=True):
        end = begin + len(token)
        # A token may end in the text, or begin in it.
        if end > at and begin < at + len(wanted):
            found.append(each)
        begin = end
    return found
