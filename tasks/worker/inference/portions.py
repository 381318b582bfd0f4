"""The portions of an answer's tokens, as the log keeps them beside the bytes that were made of them.

Whole numbers with commas between: a token id, with a plus sign where a portion begins; below zero, why the answer
ended: the reason, and where a stop token is to blame, ``-100`` less its id, where a stop string is, ``-99``. A portion
without tokens is its end alone. ``@1`` stands before portions of the choice 1, ``@0`` behind them: what was encoded is
joined with commas.
"""

from collections.abc import Iterable

from engines.types import Portion

_REASONS = {"stop": -2, "length": -3, "repetition": -4}
_WORDS = {number: word for word, number in _REASONS.items()}
_BEGIN = -1
_STOP_TOKEN = -100
_STOP_STRING = -99


def encode_portions(portions: Iterable[Portion]) -> str:
    """Return what :func:`decode_portions` reads."""
    words: list[str] = []
    current = 0
    for tokens, finish_reason, stop_reason, choice in portions:
        if choice != current:
            words.append(f"@{choice}")
            current = choice
        words.append(f"+{','.join(map(str, tokens))}" if tokens else str(_BEGIN))
        if finish_reason is not None:
            words.append(str(_REASONS[finish_reason]))
            if isinstance(stop_reason, int):
                words.append(str(_STOP_TOKEN - stop_reason))
            elif stop_reason is not None:
                words.append(str(_STOP_STRING))
    if current:
        words.append("@0")
    return ",".join(words)


def decode_portions(text: str) -> tuple[Portion, ...]:
    """Return the portions. Which stop string it was is not kept (''): the detokenizer finds it again.

    Raises ``ValueError``.
    """
    found: list[Portion] = []
    choice = 0
    for word in text.split(",") if text else []:
        if word.startswith("@"):
            choice = int(word[1:])
            continue
        number = int(word)
        if number == _BEGIN:
            found.append(Portion((), choice=choice))
        elif word.startswith("+"):
            found.append(Portion((number,), choice=choice))
        elif not found:
            raise ValueError(f"a portion must begin first: {word!r}")
        elif number >= 0:
            found[-1] = found[-1]._replace(tokens=(*found[-1].tokens, number))
        elif number == _STOP_STRING:
            found[-1] = found[-1]._replace(stop_reason="")
        elif number <= _STOP_TOKEN:
            found[-1] = found[-1]._replace(stop_reason=_STOP_TOKEN - number)
        else:
            found[-1] = found[-1]._replace(finish_reason=_WORDS[number])
    return tuple(found)
