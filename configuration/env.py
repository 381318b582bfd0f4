"""Environment variables as typed values.

An empty variable is an unset one: ``environment: - X=${X}`` of a compose file passes empty text. A value that
Kubernetes injected for a Service of our name (``CY_LLM_PORT=tcp://10.0.0.1:8080``) is ignored with a warning.
Whatever else is wrong raises ``ConfigurationError``: one line, with the variable and what is allowed.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from configuration.errors import ConfigurationError
from text import clean_token, has_control_characters, is_token, is_whole, quote

log = logging.getLogger(__name__)

#: What Kubernetes sets for each port of a Service (``{NAME}_PORT``), also Docker's old links.
_INJECTED = re.compile(r"(?:tcp|udp|sctp)://", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}\Z")

#: Makes a value of a variable's text. Raises ``ValueError``, whose message says what is allowed.
Parser = Callable[[str], Any]


def is_given(environ: Mapping[str, str], name: str) -> bool:
    """Whether an operator set the variable: not empty, and not injected by another system."""
    value = environ.get(name, "")
    return bool(value.strip()) and not _INJECTED.match(value)


def read(environ: Mapping[str, str], name: str, default: Any, parse: Parser, *, secret: bool = False) -> Any:
    """Return the variable ``name`` as ``parse`` makes it, ``default`` where it is unset or empty."""
    value = environ.get(name, "")
    if not value.strip():
        return default
    if _INJECTED.match(value):
        log.warning(
            "%s=%s was set by another system (a Kubernetes Service of that name?) and is ignored", name, quote(value)
        )
        return default
    if not is_whole(value):
        raise ConfigurationError(f"{name}: its value is not UTF-8 text")
    try:
        return parse(value)
    except ValueError as error:
        shown = "the value" if secret else quote(value)
        raise ConfigurationError(f"{name}: {shown} {error}") from None


def text(value: str) -> str:
    return _one_line(value.strip())


def token(value: str) -> str:
    """A key. White space around it can only be a mistake: a secret file ends with a newline."""
    cleaned = clean_token(value)
    if not is_token(cleaned):
        raise ValueError("must be a key: printable ASCII text without white space")
    return cleaned


def whole(low: int, high: int) -> Parser:
    """A whole number from ``low`` to ``high``."""

    def parse(value: str) -> int:
        cleaned = value.strip().replace("_", "")
        if not _WHOLE.match(cleaned) or not low <= int(cleaned) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(cleaned)

    return parse


def number(low: float, high: float) -> Parser:
    """A number from ``low`` to ``high``."""

    def parse(value: str) -> float:
        message = f"must be a number from {low:g} to {high:g}"
        try:
            found = float(value) if value.isascii() else math.nan
        except ValueError:
            raise ValueError(message) from None
        if not low <= found <= high:
            raise ValueError(message)
        return found

    return parse


def choice(*allowed: str) -> Parser:
    """One of some words, in any case."""

    def parse(value: str) -> str:
        by_folded = {word.lower(): word for word in allowed}
        try:
            return by_folded[value.strip().lower()]
        except KeyError:
            raise ValueError(f"must be one of {', '.join(allowed)}") from None

    return parse


def words(value: str) -> tuple[str, ...]:
    """Words with commas between them."""
    return tuple(word for word in (_one_line(part.strip()) for part in value.split(",")) if word)


def pattern(expression: str, allowed: str) -> Parser:
    """Text that matches all of a regular expression; ``allowed`` says it in words."""
    compiled = re.compile(expression)

    def parse(value: str) -> str:
        if not compiled.fullmatch(value.strip()):
            raise ValueError(f"must be {allowed}")
        return value.strip()

    return parse


def path(value: str) -> Path:
    """A file or folder; ``~`` is the home, and a relative one starts at the folder that the process was started in."""
    if has_control_characters(value):
        raise ValueError("must be a path, and a path holds no control character")
    try:
        return Path(value).expanduser().resolve()
    except (RuntimeError, OSError) as error:
        raise ValueError(f"cannot be used as a path: {error}") from None


def paths(value: str) -> tuple[Path, ...]:
    """Several paths with ':' between them, as in PATH."""
    return tuple(path(part) for part in value.split(":") if part)


def _one_line(value: str) -> str:
    if has_control_characters(value):
        raise ValueError("must hold no line breaks or other control characters")
    return value
