"""Where bytes become text, and what text may be: one door for bodies, frames, headers, files, variables and arguments.

Text that this system holds can always be written again as UTF-8. Bytes that are no UTF-8 (UTF-16, CESU-8, a
Chinese or Western code page) and half characters (a lone surrogate, which JSON can spell ``\\ud83d``) are
refused where they come in, with the name of the field that holds them.
"""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

#: The largest whole number that the database, vLLM and every client language take: a signed 64-bit one.
MAX_INTEGER = 2**63 - 1

#: The escapes of JSON that may leave half a character behind.
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
#: What has no place in a name, a path, an id or a header: C0 and C1 control characters.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
#: What a browser, a shell or a secret file may leave around a key: white space, and the marks that show as nothing.
_AROUND_A_TOKEN = " \t\r\n\v\f\u00a0\ufeff\u200b"
_TOKEN = re.compile(r"[\x21-\x7e]+\Z")
#: How much of a client's text a message repeats. Characters.
_QUOTED = 80


class NotText(ValueError):
    """What came in is no text. The message says why; ``field`` is the dotted path of the value, '' for the whole."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


def decode(raw: bytes) -> str:
    """Return ``raw`` as text, without a byte order mark. Raises ``NotText``, with a hint at the likely cause."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotText(f"is not UTF-8 text at byte {error.start}{_hint(raw, error.start)}") from None


def _hint(raw: bytes, at: int) -> str:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in raw[:8]:
        return "; it looks like UTF-16"
    if raw[at : at + 1] == b"\xed":
        return "; a character beyond U+FFFF is written as two halves (CESU-8), which is not UTF-8"
    return ""


def require_whole_characters(json_text: str, value: Any) -> None:
    """Check a value that was parsed from ``json_text``, itself decoded strictly. Raises ``NotText``."""
    # Looked at only where an escape could have made one: bodies are large, and this is on every request's way.
    if _SURROGATE_ESCAPE.search(json_text) is None:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        message = "holds half a character (a lone surrogate): the text was cut inside an emoji"
        raise NotText(message, _place_of_a_surrogate(value)) from None


def field_with_half_a_character(raw: bytes) -> str:
    """Return the path of the JSON value whose bytes spell half a character (CESU-8); '' where there is none."""
    try:
        return _place_of_a_surrogate(json.loads(raw.decode("utf-8", "surrogatepass")))
    except (ValueError, RecursionError):
        return ""


def is_whole(value: str) -> bool:
    """Whether text can be written as UTF-8."""
    return _SURROGATE.search(value) is None


def has_control_characters(value: str) -> bool:
    """Whether text holds what no name, path or id may hold (NUL among them)."""
    return _CONTROL.search(value) is not None


def clean_token(value: str) -> str:
    """Return a key without the white space around it, which can only be a mistake."""
    return value.strip(_AROUND_A_TOKEN)


def is_token(value: str) -> bool:
    """Whether a key can travel in a header: printable ASCII, no white space."""
    return _TOKEN.match(value) is not None


def quote(value: object) -> str:
    """Return a value that a client sent, for a message: in quotes, short, and printable."""
    words = str(value)
    shortened = words if len(words) <= _QUOTED else words[: _QUOTED - 1] + "…"
    return "'" + "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shortened) + "'"


def tolerate_any_terminal() -> None:
    """Let this process write every text to its terminal, whatever encoding that has: what it lacks is escaped."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if isinstance(stream, TextIO) or reconfigure is not None:
            reconfigure(errors="backslashreplace")  # type: ignore[misc]


def _place_of_a_surrogate(value: Any) -> str:
    """Return the dotted path of the first text that holds half a character, short enough for a message.

    One step at a time, keeping nothing but the way: a hostile body has many values under long names.
    """
    way: list[str] = []
    waiting: list[Iterator[tuple[str, Any]]] = [iter([("", value)])]
    while waiting:
        for name, part in waiting[-1]:
            if not is_whole(name) or (isinstance(part, str) and not is_whole(part)):
                return "".join([*way, name])[:_QUOTED].lstrip(".").encode("utf-8", "replace").decode()
            if isinstance(part, dict):
                waiting.append((f".{key}", item) for key, item in part.items())
            elif isinstance(part, list):
                waiting.append((f"[{index}]", item) for index, item in enumerate(part))
            else:
                continue
            way.append(name)
            break
        else:
            waiting.pop()
            if way:
                way.pop()
    return ""
