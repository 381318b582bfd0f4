"""A batch that this process runs: what is left of it, and what came of its lines."""

import heapq
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from store.files.batch_folder import BatchFolder, Journal, Place, Result, read_at
from store.sql.file_tables import Batch
from webapp.openai.batches import usage
from webapp.openai.batches.answering import Answer
from webapp.openai.batches.lines import Line, Scan, read, scan

#: How often a line is asked again whose answer was a failure of the system's.
_TRIES = 3
#: How often a line is stopped for somebody who waits. It goes on where it was, but has its prompt read anew.
_STOPS = 8
#: How long a line waits that the system cannot take now, and at most after having waited again and again. Seconds.
_WAIT, _LONGEST_WAIT = 0.5, 10.0
_LINE_PREFIX = "batch_req_"
#: Models of one batch that are looked up at once: a file may name as many as it has lines.
_MODELS = 16
_NEVER_ASKED = {
    "batch_expired": "This request could not be executed before the completion window expired.",
    "batch_cancelled": "This request was not executed: the batch was cancelled.",
}


class ActiveBatch:
    """Lines are given out by the runner's thread, and come back from those that ask them."""

    def __init__(self, row: Batch, fence: int, folder: BatchFolder) -> None:
        self.row = row
        self.fence = fence
        self.folder = folder
        #: What is in its file; None while that is looked through.
        self.found: Scan | None = None
        #: Whether clients see that it is in progress.
        self.begun = False
        #: What went wrong in a thread: the runner decides what becomes of the batch.
        self.broken: Exception | None = None
        #: Set when no more lines are to be asked: ``batch_cancelled`` or ``batch_expired``.
        self.stopped = ""
        #: Whether it is not this process's any more.
        self.lost = False
        self.in_flight = 0
        #: When clients were last shown how far it is (``time.monotonic``).
        self.shown_at = 0.0
        self._usage: dict[str, int] = {}
        self._answered = 0
        self._refused = 0
        self._lines: dict[int, Line] = {}
        #: Model -> lines that may be asked; the next one is at the end.
        self._left: dict[str, list[int]] = {}
        #: When a line may be asked again, and which.
        self._waiting: list[tuple[float, int]] = []
        self._tries: dict[int, int] = {}
        self._waits: dict[int, int] = {}
        self._stops: dict[int, int] = {}
        self._stopped_requests: dict[int, str] = {}
        self._places: dict[int, Place] = {}
        self._journal: Journal | None = None
        self._written = False
        self._lock = threading.Lock()

    def validate(self) -> None:
        """Find out what is in the file, and what earlier runners came to. In a thread: this may take seconds."""
        try:
            found = scan(self.folder.input, self.row.endpoint)
            if not found.faults:
                self._begin(found.lines)
            self.found = found
        except Exception as error:
            self.broken = error

    def _begin(self, lines: list[Line]) -> None:
        for place, result in self.folder.results(self.fence):
            if result.line not in self._places:
                self._count(result, place)
        self._journal = self.folder.journal(self.fence)
        self._lines = {line.number: line for line in lines}
        for line in reversed(lines):
            if line.number not in self._places:
                self._left.setdefault(line.model, []).append(line.number)

    @property
    def total(self) -> int:
        """How many lines it has."""
        return len(self._lines)

    @property
    def done(self) -> bool:
        """Whether each line has its result, or none is to be asked any more; and none is being asked."""
        with self._lock:
            return not self.in_flight and (bool(self.stopped) or len(self._places) == len(self._lines))

    def waiting_for(self) -> list[str]:
        """Return models that lines ask for which may be asked, a few at most."""
        with self._lock:
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                number = heapq.heappop(self._waiting)[1]
                self._left.setdefault(self._lines[number].model, []).append(number)
            return [] if self.given_up() else list(islice(self._left, _MODELS))

    def take(self, has_place: Callable[[str], bool]) -> Line | None:
        """Take a line out of a model that may be asked now; None where there is none."""
        with self._lock:
            if self.given_up():
                return None
            for model, numbers in self._left.items():
                if has_place(model):
                    self.in_flight += 1
                    number = numbers.pop()
                    if not numbers:
                        del self._left[model]
                    return self._lines[number]
            return None

    def read(self, line: Line) -> dict[str, Any]:
        """Return what a line says. Raises ``OSError``."""
        return read(self.folder.input, line)

    def given_up(self) -> bool:
        """Whether nobody wants the lines that are being asked."""
        return self.lost or bool(self.stopped) or self.broken is not None

    def preemptible(self, line: Line) -> bool:
        """Whether a line may be stopped for somebody who waits; one that was stopped often comes to its end."""
        return self._stops.get(line.number, 0) < _STOPS

    def stopped_request(self, line: Line) -> str | None:
        """Return the request of a line that was stopped, which goes on; None where it is to be asked."""
        return self._stopped_requests.get(line.number)

    def stopped_requests(self) -> list[str]:
        """Return all requests that were stopped and wait."""
        with self._lock:
            return list(self._stopped_requests.values())

    # What becomes of a line that was taken: one of these, then ``returned``.

    def requeue(self, line: Line) -> None:
        """The line could not be asked now."""
        with self._lock:
            waits = self._waits[line.number] = self._waits.get(line.number, 0) + 1
            self._wait(line, min(_LONGEST_WAIT, _WAIT * 2.0 ** min(waits, 10)))

    def preempt(self, line: Line, request_id: str) -> None:
        """The line was stopped for somebody who waits; its request goes on later."""
        with self._lock:
            self._stopped_requests[line.number] = request_id
            self._stops[line.number] = self._stops.get(line.number, 0) + 1
            self._wait(line, 0.0)

    def take_answer(self, line: Line, custom_id: str, answer: Answer) -> None:
        """Note an answer; a passing failure is asked once more. Raises ``OSError``."""
        with self._lock:
            self._stopped_requests.pop(line.number, None)
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

    def returned(self) -> None:
        """A line that was taken is not being asked any more."""
        with self._lock:
            self.in_flight -= 1

    # What clients see.

    def sync(self) -> dict[str, Any] | None:
        """Make safe what was noted, and return what it comes to; None where nothing new was. Raises ``OSError``."""
        with self._lock:
            if not self._written or self._journal is None:
                return None
            self._journal.sync()
            self._written = False
            return self._counts()

    def counts(self) -> dict[str, Any]:
        """Return what a client is shown, of a batch whose results are safe."""
        with self._lock:
            return self._counts()

    def results(self) -> Iterator[Result]:
        """Yield a result for each line, in the order of the file. Raises ``OSError``."""
        for number in sorted(self._lines):
            place = self._places.get(number)
            if place is not None:
                yield read_at(place)
                continue
            error = {"code": self.stopped, "message": _NEVER_ASKED[self.stopped]}
            yield Result(number, False, _document(self.read(self._lines[number])["custom_id"], None, error))

    def close(self) -> None:
        """Its results are not written any more."""
        with self._lock:
            if self._journal is not None:
                self._journal.close()
                self._journal = None

    def _counts(self) -> dict[str, Any]:
        return {"completed": self._answered, "failed": self._refused, "usage": dict(self._usage)}

    def _wait(self, line: Line, seconds: float) -> None:
        heapq.heappush(self._waiting, (time.monotonic() + seconds, line.number))

    def _count(self, result: Result, place: Place) -> None:
        self._places[result.line] = place
        self._answered += result.answered
        self._refused += not result.answered
        if result.answered:
            usage.add(self._usage, result.document["response"]["body"])


def _document(custom_id: str, response: dict[str, Any] | None, error: dict[str, Any] | None) -> dict[str, Any]:
    line_id = f"{_LINE_PREFIX}{secrets.token_hex(12)}"
    return {"id": line_id, "custom_id": custom_id, "response": response, "error": error}
