"""``python -m bench.streams [--streams 1000] [--seconds 20] [--rate 10]``: many open streams on the fake engine.

Every stream gets ``--rate`` tokens a second. Prints how many were dropped, when their first event
came, what a stream costs the front door in memory, and what a finished one costs Redis.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from testing.processes import children, cpu, rss
from testing.stack import KEY, Stack


@dataclass
class Seen:
    """What one client saw. Times in seconds from its request."""

    first: float = 0.0
    chunks: int = 0
    done: bool = False
    longest_pause: float = 0.0
    error: str = ""
    _last: float = field(default=0.0, repr=False)

    def chunk(self, now: float, started: float) -> None:
        self.first = self.first or now - started
        self.longest_pause = max(self.longest_pause, now - self._last if self._last else 0.0)
        self._last = now
        self.chunks += 1


async def follow(port: int, number: int, tokens: int, parse: bool = False) -> Seen:
    """Read one stream over a plain socket, so that the clients cost little; ``parse`` each chunk, if wanted."""
    seen = Seen()
    generation = {"maxNewTokens": tokens}
    body = json.dumps({"modelId": "load", "prompt": f"p{number}", "generation": generation}).encode()
    head = (
        f"POST /api/v1/inference/stream HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    started = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            seen.error = status.decode().strip() + _reason((await reader.read(4096)).decode())
            return seen
        while line := await reader.readline():
            if line.startswith(b"data: [DONE]"):
                seen.done = True
                break
            if line.startswith(b"data: {"):
                if parse:
                    json.loads(line[6:])
                seen.chunk(time.monotonic(), started)
        writer.close()
    except OSError as error:
        seen.error = repr(error)
    return seen


def _reason(answer: str) -> str:
    """What an error's body says of itself."""
    try:
        error = json.loads(answer.partition("\r\n\r\n")[2])["error"]
        return f": {error['details'][0]['type'] if error['details'] else error['code']}"
    except (ValueError, KeyError, TypeError):
        return ""


async def load(stack: Stack, web: list[int], streams: int, tokens: int, ramp: float) -> tuple[list[Seen], int]:
    """Open all streams over ``ramp`` seconds; return what they saw and the front door's peak memory."""

    async def one(number: int) -> Seen:
        await asyncio.sleep(ramp * number / streams)
        return await follow(stack.port, number, tokens)

    peak = 0

    async def measure() -> None:
        nonlocal peak
        while True:
            peak = max(peak, sum(rss(pid) for pid in web))
            await asyncio.sleep(0.5)

    meter = asyncio.create_task(measure())
    seen = await asyncio.gather(*(one(number) for number in range(streams)))
    meter.cancel()
    return list(seen), peak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--ramp", type=float, default=8.0, help="seconds over which the streams are opened (default 8)")
    parser.add_argument("--rate", type=float, default=10.0, help="tokens a second of each stream (default 10)")
    parser.add_argument("--web-workers", type=int, default=1, help="processes of the front door (default 1)")
    arguments = parser.parse_args()
    tokens = int(arguments.seconds * arguments.rate)
    models = {"load": {"model_path": "none", "engine": "fake", "tokensPerSecond": arguments.rate}}
    threads = str(arguments.streams + 50)
    with tempfile.TemporaryDirectory(prefix="cy-llm-streams-") as folder:
        env = {"CY_LLM_WEB_THREADS": threads, "CY_LLM_MAX_QUEUE_SIZE": "5000"}
        stack = Stack(Path(folder), models, env={**env, "CY_LLM_WEB_WORKERS": str(arguments.web_workers)})
        try:
            worker = stack.start_worker("load", ["--models", "load", "-c", threads])
            web = children(stack.start_web().pid)
            asyncio.run(load(stack, web, 20, 5, 0.0))
            idle = sum(rss(pid) for pid in web)
            redis_before = int(stack.client.info("memory")["used_memory"])
            pids = {"front door": web, "worker": [worker.pid], "Redis": [stack.redis.pid]}
            before = {name: sum(cpu(pid) for pid in arguments) for name, arguments in pids.items()}
            started = time.monotonic()
            seen, peak = asyncio.run(load(stack, web, arguments.streams, tokens, arguments.ramp))
            took = time.monotonic() - started
            used = {name: sum(cpu(pid) for pid in arguments) - before[name] for name, arguments in pids.items()}
            redis_after = int(stack.client.info("memory")["used_memory"])
            report(seen, arguments.streams, tokens, took, peak - idle, redis_after - redis_before, used)
            return 0 if all(one.done for one in seen) else 1
        finally:
            stack.close()


def report(
    seen: list[Seen], streams: int, tokens: int, took: float, web: int, redis: int, used: dict[str, float]
) -> None:
    # Of those that were let in.
    firsts = sorted(one.first for one in seen if one.first) or [0.0]
    print(f"streams opened           {streams}, {tokens} tokens each, {took:.1f} s in all")
    print(f"finished                 {sum(one.done for one in seen)}")
    print(f"errors                   {sorted({one.error for one in seen if one.error}) or 'none'}")
    p99 = firsts[max(0, int(len(firsts) * 0.99) - 1)]
    print(f"first event, p50/p99/max {statistics.median(firsts):.3f} s / {p99:.3f} s / {firsts[-1]:.3f} s")
    print(f"longest pause            {max(one.longest_pause for one in seen):.2f} s")
    print(f"chunks a stream          {statistics.mean(one.chunks for one in seen):.0f}")
    print(f"front door, peak         {web / streams / 1024:.1f} KB a stream (private memory)")
    print(f"Redis, finished stream   {redis / streams / 1024:.1f} KB, kept until the stream expires")
    for name, seconds in used.items():
        print(f"CPU, {name:<19} {seconds:.1f} s ({seconds / (streams * tokens) * 1e6:.0f} us a token)")


if __name__ == "__main__":
    sys.exit(main())
