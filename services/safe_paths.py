"""Paths that clients name: inside the configured folders, or refused."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from services.errors import InvalidRequest


def resolve_inside(text: str, roots: Sequence[Path], field: str) -> Path:
    """Return the real path of ``text``: absolute, or relative to the first root that holds it.

    Links are followed before the path is judged. Raises ``InvalidRequest`` for a path that
    leaves every root; the message names no path of the host.
    """
    if "\0" in text or ".." in Path(text).parts:
        raise _refused(field)
    found: list[Path] = []
    for root in roots:
        real = Path(os.path.realpath(root))
        try:
            # An absolute path replaces the root it is joined to.
            path = Path(os.path.realpath(real / text))
            if path.is_relative_to(real) and path != real:
                found.append(path)
                if path.exists():
                    return path
        except (OSError, ValueError):
            # Too long a name, too many links, text that no file system takes.
            continue
    if not found:
        raise _refused(field)
    return found[0]


def existing_file(text: str, roots: Sequence[Path], field: str) -> Path:
    """As :meth:`resolve_inside`, for a plain file that is there."""
    path = resolve_inside(text, roots, field)
    try:
        mode = path.stat().st_mode
    except OSError:
        raise InvalidRequest.of("not_found", field, f"There is no file '{text}' in the data folders") from None
    if not stat.S_ISREG(mode):
        raise InvalidRequest.of("invalid_path", field, f"'{text}' is not a plain file")
    return path


def _refused(field: str) -> InvalidRequest:
    description = f"'{field}' must be a path inside the folders that are configured for it"
    return InvalidRequest.of("invalid_path", field, description)
