"""Where one worker's part of a streamed answer ends and the next one's begins.

The next worker makes the whole stream once more. Event by event, what the client has is left out, and must be the same
but for what every run makes anew: ids, times, and measures of probability. From then on the first run's ids and times
stand in for the new ones.
"""

import json
from typing import Any

#: Numbers that say when something was made.
_TIMES = ("created", "created_at", "completed_at")
#: Values beside ids that every run makes anew.
_MARKS = ("signature",)
#: Values that float noise may change, and that are left out with their event.
_MEASURES = ("logprobs",)
_END = b"\n\n"


class DoesNotFit(Exception):
    """The new run says something else than the client was told."""


class Seam:
    """Joins the parts of one answer."""

    def __init__(self, delivered: bytes) -> None:
        """``delivered`` is what the client has."""
        self._left_out = [event for event in delivered.split(_END) if event]
        self._replaced: dict[bytes, bytes] = {}

    @property
    def passed(self) -> bool:
        """Whether the new run has said all that the client has."""
        return not self._left_out

    def join(self, part: bytes) -> bytes:
        """Return an event of the new run as the client shall get it; b'' for one that it has. Raises ``DoesNotFit``."""
        if self._left_out:
            self._compare(self._left_out.pop(0), part.removesuffix(_END))
            return b""
        for new, old in self._replaced.items():
            part = part.replace(new, old)
        return part

    def _compare(self, old: bytes, new: bytes) -> None:
        if old == new:
            return
        (old_head, old_data), (new_head, new_data) = _parts(old), _parts(new)
        try:
            old_value, new_value = json.loads(old_data), json.loads(new_data)
        except ValueError:
            raise DoesNotFit from None
        if old_head != new_head:
            raise DoesNotFit
        self._match("", old_value, new_value)

    def _match(self, key: str, old: Any, new: Any) -> None:
        if old == new or key in _MEASURES:
            return
        if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
            for name in old:
                self._match(name, old[name], new[name])
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for old_item, new_item in zip(old, new, strict=True):
                self._match(key, old_item, new_item)
        elif isinstance(old, str) and isinstance(new, str) and _is_identity(key):
            self._replaced[json.dumps(new).encode()] = json.dumps(old).encode()
        elif key in _TIMES and isinstance(old, int) and isinstance(new, int):
            self._replaced[f'"{key}":{new}'.encode()] = f'"{key}":{old}'.encode()
        else:
            raise DoesNotFit


def _parts(event: bytes) -> tuple[bytes, bytes]:
    """Return the lines before an event's data, and the data; JSON has no line breaks."""
    head, _, data = (b"\n" + event).partition(b"\ndata: ")
    return head, data


def _is_identity(key: str) -> bool:
    return key == "id" or key.endswith("_id") or key in _MARKS
