"""A client that reads a stream to its end, resuming by id whenever it is cut off."""

import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from testing.sse import Event, events
from testing.stack import Stack

#: A client gives up after this long. Seconds.
PATIENCE_SECONDS = 120.0
#: Pause before a client tries to resume. Seconds.
_RETRY_SECONDS = 0.2


@dataclass
class Outcome:
    """What one client got."""

    text: str = ""
    offsets: list[int] = field(default_factory=list)
    done: bool = False
    error: str = ""
    resumed: int = 0
    #: The longest time without a chunk, behind the first one. Seconds.
    longest_pause: float = 0.0

    @property
    def doubled(self) -> bool:
        return len(set(self.offsets)) < len(self.offsets)

    @property
    def lost(self) -> bool:
        return bool(self.offsets) and set(self.offsets) != set(range(max(self.offsets) + 1))


class Client:
    """One request, followed to its end."""

    def __init__(self, stack: Stack, body: dict[str, Any]) -> None:
        self._stack = stack
        self._body = body
        self._id = ""
        self._last = ""
        self._last_chunk_at = 0.0
        self.outcome = Outcome()

    def run(self) -> Outcome:
        ends = time.monotonic() + PATIENCE_SECONDS
        while not self.outcome.done and not self.outcome.error:
            if time.monotonic() > ends:
                self.outcome.error = "patience is over"
                break
            try:
                self._read()
            except httpx.HTTPError:
                time.sleep(_RETRY_SECONDS)
        return self.outcome

    def _read(self) -> None:
        with self._stack.http() as http:
            if self._id:
                self.outcome.resumed += 1
                headers = {"Last-Event-ID": self._last}
                call = http.stream("GET", f"/inference/{self._id}/stream", headers=headers)
            else:
                call = http.stream("POST", "/inference/stream", json=self._body)
            with call as response:
                if response.status_code != 200:
                    if response.status_code in (429, 502, 503):
                        time.sleep(_RETRY_SECONDS)
                        return
                    self.outcome.error = f"{response.status_code} {response.read()!r}"
                    return
                for event in events(response):
                    self._take(event)

    def _take(self, event: Event) -> None:
        if event.data == "[DONE]":
            self.outcome.done = True
        elif event.name == "error":
            self.outcome.error = event.data
        elif event.data and not event.name:
            chunk = event.json()
            self._id, self._last = chunk["id"], event.id
            choice = chunk["choices"][0]
            if "finish_reason" not in choice:
                self.outcome.text += choice["text"]
                self.outcome.offsets.append(choice["offset"])
            now = time.monotonic()
            if self._last_chunk_at:
                self.outcome.longest_pause = max(self.outcome.longest_pause, now - self._last_chunk_at)
            self._last_chunk_at = now
