"""A native stream that is read in the background while a test does something to it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from testing.sse import Event, events
from testing.stack import Stack
from testing.waiting import until

#: Long enough to be interrupted in the middle: 20 tokens a second.
TOKENS = 120


@dataclass
class Stream:
    """A stream read in a thread of its stream."""

    found: list[Event] = field(default_factory=list)
    error: BaseException | None = None
    thread: threading.Thread | None = None

    @property
    def id(self) -> str:
        return str(self.found[0].json()["id"])

    def has_begun(self, chunks: int = 3) -> bool:
        return len([event for event in self.found if event.data]) >= chunks

    def join(self, seconds: float = 60) -> list[Event]:
        assert self.thread is not None
        self.thread.join(seconds)
        assert not self.thread.is_alive(), "the stream did not end"
        if self.error:
            raise self.error
        return self.found


@contextmanager
def streaming(stack: Stack, prompt: str = "p", tokens: int = TOKENS, **fields: Any) -> Iterator[Stream]:
    """Read a stream of the slow model in the background; it has begun when the block runs."""
    body = {"modelId": "slow", "prompt": prompt, "generation": {"maxNewTokens": tokens}, **fields}
    stream = Stream()

    def read() -> None:
        try:
            with stack.http() as http, http.stream("POST", "/inference/stream", json=body) as response:
                assert response.status_code == 200
                for event in events(response):
                    stream.found.append(event)
        except BaseException as error:
            stream.error = error

    stream.thread = threading.Thread(target=read)
    stream.thread.start()
    until(lambda: stream.error or stream.has_begun(), 20, "the stream has begun")
    if stream.error:
        raise stream.error
    yield stream


def running(stack: Stack) -> int:
    """How many sequences the engines hold, as they say themselves."""
    return sum(info.get("running", 0) for worker in stack.fleet().living for info in worker.models.values())
