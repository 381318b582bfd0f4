"""``python -m bench.stops [--rounds 20]``: how long real vLLM goes on for a request that nobody wants any more.

Each round stops a stream in its middle, in one of two ways. Times are from that moment to the
closing entry of the request in the token log, which its worker writes when vLLM has aborted it:
``cancel`` is the explicit call, ``client gone`` a socket that is closed without a word.
"""

import argparse
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from store.redis import keys as redis_keys
from store.token_log import log as token_log
from store.token_log.entries import Entry, Kind
from testing.faults.rounds import MODELS
from testing.stack import KEY, Stack
from testing.waiting import until


class Stream:
    """A stream read over a plain socket, up to its second chunk."""

    def __init__(self, stack: Stack) -> None:
        generation = {"temperature": 0, "maxNewTokens": 600}
        prompt = "Tell me the story of the library"
        body = json.dumps({"modelId": "demo", "prompt": prompt, "generation": generation}).encode()
        fields = f"Host: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        head = f"POST /api/v1/inference/stream HTTP/1.1\r\n{fields}"
        self.socket = socket.create_connection(("127.0.0.1", stack.port), timeout=30)
        self.socket.sendall(head.encode() + body)
        with self.socket.makefile("rb") as lines:
            chunks = (json.loads(line[6:]) for line in lines if line.startswith(b"data: {"))
            self.id = str(next(chunks)["id"])
            next(chunks)


def wait_for_end(stack: Stack, request_id: str) -> Entry:
    """Return the entry that closes the request's log. Looks, and does not subscribe: a listener is a reader."""

    def closing() -> Entry | None:
        [last] = token_log.entries_from_rows(stack.client.xrevrange(redis_keys.log(request_id), count=1))
        return last if last.kind in (Kind.END, Kind.RELEASE) else None

    return until(closing, 30, f"{request_id} is stopped")


def measure(stack: Stack, rounds: int, stop: Callable[[Stream], None]) -> list[float]:
    """Seconds from each stop to the closing entry, shortest first."""
    took: list[float] = []
    while len(took) < rounds:
        stream = Stream(stack)
        started = time.monotonic()
        stop(stream)
        end = wait_for_end(stack, stream.id).json()
        if end.get("outcome") != "finished":
            took.append(time.monotonic() - started)
        stream.socket.close()
    return sorted(took)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.stops", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="cy-llm-stops-") as folder:
        stack = Stack(Path(folder), MODELS)
        try:
            stack.start_worker("stops", ["--models", "demo"], seconds=120)
            stack.start_web()
            with stack.http() as http:

                def cancel(stream: Stream) -> None:
                    http.post(f"/inference/{stream.id}/cancel").raise_for_status()

                for name, stop in (("cancel", cancel), ("client gone", lambda stream: stream.socket.close())):
                    took = measure(stack, rounds, stop)
                    print(
                        f"{name:<12} median {statistics.median(took) * 1000:.0f} ms, longest {took[-1] * 1000:.0f} ms"
                    )
        finally:
            stack.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
