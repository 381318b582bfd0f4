"""A row that cannot be used, and the checks that say so."""

from typing import Any

from engines.training.datasets.rows import require_text
from text import NotText


class BadRow(Exception):
    """A row that is not what its format wants: the field and what was expected."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(description)
        self.field = field


def text(value: Any, field: str, may_be_empty: bool = False) -> str:
    """Return text. A number is taken as it is written, as a spreadsheet means it. Raises ``BadRow``."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = repr(value)
    if not isinstance(value, str):
        raise BadRow(field, f"must be text, not {type(value).__name__}")
    if not may_be_empty and not value.strip():
        raise BadRow(field, "must not be empty")
    try:
        return require_text(value, field)
    except NotText as error:
        raise BadRow(field, str(error)) from error
