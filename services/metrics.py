"""What the front doors count, whatever face a request came through.

Labels have few values: models are those of the catalog, operations the rules of the routes, codes those of the
interface document. No key, no tenant, no name that a client makes up.
"""

import time

from prometheus_client import Counter, Gauge, Histogram

from store.redis.request_records import RequestRecord
from store.token_log.entries import Entry, Kind
from store.usage_bill import NATIVE
from telemetry import buckets

REQUESTS = Counter(
    "cy_llm_requests", "Answers, by what the client was told ('' is success).", ["face", "operation", "model", "code"]
)
REFUSED_BY_LIMIT = Counter("cy_llm_refused_by_limit", "Requests beyond a limit of their key or tenant.", ["limit"])
OUTCOMES = Counter(
    "cy_llm_outcomes",
    "How inference that had begun ended, for the client that began it.",
    ["endpoint", "model", "outcome"],
)
TTFT = Histogram(
    "cy_llm_time_to_first_token_seconds",
    "From taking a request in to the first text of its answer.",
    ["endpoint", "model"],
    buckets=buckets.TIME_TO_FIRST_TOKEN,
)
TOKEN_TIME = Histogram(
    "cy_llm_time_per_output_token_seconds",
    "Mean time between the tokens of one streamed answer.",
    ["endpoint", "model"],
    buckets=buckets.TIME_PER_OUTPUT_TOKEN,
)
DURATION = Histogram(
    "cy_llm_request_duration_seconds",
    "From taking a request in to its end.",
    ["endpoint", "model"],
    buckets=buckets.DURATION,
)
QUEUE_WAIT = Histogram(
    "cy_llm_queue_wait_seconds",
    "From taking a request in to a worker's beginning it.",
    ["model"],
    buckets=buckets.TIME_TO_FIRST_TOKEN,
)
TOKENS = Counter("cy_llm_tokens", "Tokens of requests that ended, by kind: prompt, completion.", ["model", "kind"])
FAILOVERS = Counter(
    "cy_llm_failovers", "Further attempts that were sent: after a worker's loss, or because one let go.", ["reason"]
)
RESUMES = Counter("cy_llm_resumes", "Clients that came back for the rest of a stream.")
DISCONNECTS = Counter("cy_llm_disconnects", "Clients that left before the end.")
STREAMS = Gauge("cy_llm_streams", "Requests that clients follow now.", multiprocess_mode="livesum")

#: What is counted from the beginning, so that the first one is seen as an increase.
LIMITS = ("requests_per_minute", "concurrent_streams", "tokens_per_minute", "tokens_in_use", "token_quota")
LOST, LET_GO = "worker_lost", "released"
for _limit in LIMITS:
    REFUSED_BY_LIMIT.labels(_limit)
for _reason in (LOST, LET_GO):
    FAILOVERS.labels(_reason)


class StreamTimes:
    """Measures one request for the client that began it."""

    def __init__(self, record: RequestRecord) -> None:
        self._endpoint = str(record.payload.get("path") or NATIVE)
        self._model = record.model
        self._created = record.created
        self._waited = False
        self._first_at: float | None = None

    def observe(self, entry: Entry) -> None:
        """Take note of an entry, in the order in which they come; in between some may be left out."""
        if entry.kind == Kind.OPEN:
            if not self._waited:
                self._waited = True
                QUEUE_WAIT.labels(self._model).observe(max(0.0, time.time() - self._created))
        elif entry.terminal:
            self._end(entry)
        elif self._first_at is None and entry.kind in (Kind.TEXT, Kind.BODY):
            self._first_at = time.time()
            TTFT.labels(self._endpoint, self._model).observe(max(0.0, self._first_at - self._created))

    def _end(self, entry: Entry) -> None:
        data, now = entry.json(), time.time()
        usage = data.get("usage") or {}
        made = usage.get("completion_tokens", 0)
        OUTCOMES.labels(self._endpoint, self._model, str(data["outcome"])).inc()
        DURATION.labels(self._endpoint, self._model).observe(max(0.0, now - self._created))
        TOKENS.labels(self._model, "prompt").inc(usage.get("prompt_tokens", 0))
        TOKENS.labels(self._model, "completion").inc(made)
        if self._first_at is not None and made > 1 and now > self._first_at:
            TOKEN_TIME.labels(self._endpoint, self._model).observe((now - self._first_at) / (made - 1))
