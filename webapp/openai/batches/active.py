"""A batch that this process runs: what is left of it, and what came of its lines."""

import heapq
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

from store.files.batch_folder import BatchFolder, Journal, Place, Result, read_at
from store.sql.file_tables import Batch
from webapp.openai.batches import usage
from webapp.openai.batches.answering import Answer
from webapp.openai.batches.lines import Line, read

#: How often a line is asked again whose answer was a failure of the system's.
_TRIES = 3
#: How often a line is stopped for somebody who waits.
_STOPS = 2
#: How long a line waits that the system cannot take now, and at most after having waited again and again. Seconds.
_WAIT, _LONGEST_WAIT = 0.5, 10.0
_LINE_PREFIX = "batch_req_"


class ActiveBatch:
    """Lines are given out by the runner's thread, and come back from those that ask them."""

    def __init__(self, row: Batch, fence: int, folder: BatchFolder) -> None:
        self.row = row
        self.fence = fence
        self.folder = folder
        #: Set when no more lines are to be asked: ``batch_cancelled`` or ``batch_expired``.
        self.stopped = ""
        #: Whether another runner has it.
        self.lost = False
        self.usage: dict[str, int] = {}
        self.answered = 0
        self.refused = 0
        self.in_flight = 0
        #: When clients were last shown how far it is (``time.monotonic``).
        self.shown_at = 0.0
        self._lines: dict[int, Line] = {}
        self._left: list[int] = []
        #: When a line may be asked again, and which.
        self._waiting: list[tuple[float, int]] = []
        self._tries: dict[int, int] = {}
        self._waits: dict[int, int] = {}
        self._stops: dict[int, int] = {}
        self._places: dict[int, Place] = {}
        self._journal: Journal | None = None
        self._written = False
        self._lock = threading.Lock()

    def begin(self, lines: list[Line]) -> None:
        """Take in what earlier runners came to; the rest is left. Raises ``OSError``."""
        for place, result in self.folder.results(self.fence):
            if result.line not in self._places:
                self._count(result, place)
        self._journal = self.folder.journal(self.fence)
        self._lines = {line.number: line for line in lines}
        # The next one is taken from the end.
        self._left = [line.number for line in reversed(lines) if line.number not in self._places]

    @property
    def total(self) -> int:
        """How many lines it has."""
        return len(self._lines)

    @property
    def done(self) -> bool:
        """Whether each line has its result, or none is to be asked any more; and none is being asked."""
        with self._lock:
            return not self.in_flight and (bool(self.stopped) or len(self._places) == len(self._lines))

    def next(self) -> tuple[Line, dict[str, Any]] | None:
        """Return a line that may be asked now, and what it says; it is left until :meth:`take`. Raises ``OSError``."""
        with self._lock:
            if self.stopped or self.lost:
                return None
            if self._waiting and self._waiting[0][0] <= time.monotonic():
                self._left.append(heapq.heappop(self._waiting)[1])
            number = self._left[-1] if self._left else None
        return None if number is None else (self._lines[number], read(self.folder.input, self._lines[number]))

    def take(self, line: Line) -> None:
        """The line is asked."""
        with self._lock:
            self._left.remove(line.number)
            self.in_flight += 1

    def given_up(self) -> bool:
        """Whether nobody wants the lines that are being asked."""
        return self.lost or bool(self.stopped)

    def put_back(self, line: Line) -> None:
        """The line could not be asked now."""
        with self._lock:
            self.in_flight -= 1
            waits = self._waits[line.number] = self._waits.get(line.number, 0) + 1
            self._wait(line, min(_LONGEST_WAIT, _WAIT * 2.0 ** min(waits, 10)))

    def yields(self, line: Line) -> bool:
        """Whether a line may be stopped for somebody who waits; one that was stopped often comes to its end."""
        return self._stops.get(line.number, 0) < _STOPS

    def interrupt(self, line: Line) -> None:
        """The line was stopped for somebody who waits."""
        with self._lock:
            self.in_flight -= 1
            self._stops[line.number] = self._stops.get(line.number, 0) + 1
            self._wait(line, 0.0)

    def forget(self) -> None:
        """The line was given up."""
        with self._lock:
            self.in_flight -= 1

    def take_answer(self, line: Line, custom_id: str, answer: Answer) -> None:
        """Note an answer; a passing failure is asked once more. Raises ``OSError``."""
        with self._lock:
            self.in_flight -= 1
            tries = self._tries[line.number] = self._tries.get(line.number, 0) + 1
            if answer.passing and tries < _TRIES:
                self._wait(line, _WAIT * tries)
                return
            if self.lost or self._journal is None or line.number in self._places:
                return
            response = {"status_code": answer.status, "request_id": answer.request_id, "body": answer.body}
            result = Result(line.number, answer.status < 400, _document(custom_id, response, None))
            self._count(result, self._journal.append(result))
            self._written = True

    def sync(self) -> bool:
        """Make safe what was noted; whether there was anything. Raises ``OSError``."""
        with self._lock:
            written, self._written = self._written, False
            if written and self._journal is not None:
                self._journal.sync()
            return written

    def counts(self) -> dict[str, Any]:
        """What a client is shown. To be read after :meth:`sync`."""
        with self._lock:
            return {"completed": self.answered, "failed": self.refused, "usage": dict(self.usage)}

    def results(self) -> Iterator[Result]:
        """Yield a result for each line, in the order of the file. Raises ``OSError``."""
        for number in sorted(self._lines):
            place = self._places.get(number)
            if place is not None:
                yield read_at(place)
                continue
            custom_id = read(self.folder.input, self._lines[number])["custom_id"]
            error = {"code": self.stopped, "message": _NEVER_ASKED[self.stopped]}
            yield Result(number, False, _document(custom_id, None, error))

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def _wait(self, line: Line, seconds: float) -> None:
        heapq.heappush(self._waiting, (time.monotonic() + seconds, line.number))

    def _count(self, result: Result, place: Place) -> None:
        self._places[result.line] = place
        self.answered += result.answered
        self.refused += not result.answered
        if result.answered:
            usage.add(self.usage, result.document["response"]["body"])


_NEVER_ASKED = {
    "batch_expired": "This request could not be executed before the completion window expired.",
    "batch_cancelled": "This request was not executed: the batch was cancelled.",
}


def _document(custom_id: str, response: dict[str, Any] | None, error: dict[str, Any] | None) -> dict[str, Any]:
    line_id = f"{_LINE_PREFIX}{secrets.token_hex(12)}"
    return {"id": line_id, "custom_id": custom_id, "response": response, "error": error}
