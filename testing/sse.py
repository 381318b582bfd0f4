"""Reading server-sent events in tests."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class Event:
    """One event; a comment has only ``comment``."""

    data: str = ""
    id: str = ""
    name: str = ""
    comment: str = ""

    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.data)
        return value


def events(response: httpx.Response) -> Iterator[Event]:
    """Yield the events of a streamed response."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line.startswith(":"):
            yield Event(comment=line[1:].strip())
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield Event(fields.get("data", ""), fields.get("id", ""), fields.get("event", ""))
            fields = {}


def text_of(found: list[Event]) -> str:
    """The text of all chunks."""
    chunks = [event.json() for event in found if event.data and event.data != "[DONE]"]
    return "".join(chunk["choices"][0]["text"] for chunk in chunks if "choices" in chunk)
