"""``python -m bench.slow_readers [--streams 40] [--tokens 8000]``: clients that do not read.

Each opens a stream of the fake engine, 200 tokens a second, and reads nothing while it lasts: its
kernel buffers fill, then its thread at the front door waits. Prints the private memory of the front
door and the memory of Redis meanwhile; then all clients read to the end.
"""

import argparse
import json
import socket
import sys
import tempfile
import time
from pathlib import Path

from testing.processes import children, rss
from testing.stack import KEY, Stack
from testing.waiting import until

#: Small, so that the server's side fills soon. Bytes.
_RECEIVE_BUFFER = 4096
TOKENS_PER_SECOND = 200.0


def open_stream(stack: Stack, number: int, tokens: int) -> socket.socket:
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    reader.settimeout(60)
    reader.connect(("127.0.0.1", stack.port))
    generation = {"maxNewTokens": tokens}
    body = json.dumps({"modelId": "load", "prompt": f"p{number}", "generation": generation}).encode()
    fields = f"Host: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    reader.sendall(f"POST /api/v1/inference/stream HTTP/1.1\r\n{fields}".encode() + body)
    return reader


def read_to_end(reader: socket.socket) -> int:
    """Return how many chunks came, each of them the next; -1 when one was missing or doubled."""
    expected, done = 0, False
    with reader.makefile("rb") as lines:
        for line in lines:
            if line.startswith(b"data: [DONE]"):
                done = True
                break
            if line.startswith(b"data: {"):
                choice = json.loads(line[6:])["choices"][0]
                if choice["offset"] != expected:
                    return -1
                expected += 1
    reader.close()
    return expected if done else -1


def row(seconds: float, front_door: float, redis: float, note: str) -> None:
    print(f"{seconds:7.0f} {front_door:12.1f} {redis:7.1f}   {note}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.slow_readers", description=__doc__)
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=8000)
    reader = parser.parse_args()
    models = {"load": {"model_path": "none", "engine": "fake", "tokensPerSecond": TOKENS_PER_SECOND}}
    with tempfile.TemporaryDirectory(prefix="cy-llm-slow-") as folder:
        stack = Stack(Path(folder), models, env={"CY_LLM_WEB_THREADS": str(reader.streams + 50)})
        try:
            stack.start_worker("load", ["--models", "load", "-c", str(reader.streams)])
            web = children(stack.start_web().pid)
            read_to_end(open_stream(stack, 0, 100))

            def memory() -> tuple[float, float]:
                used = int(stack.client.info("memory")["used_memory"])
                return sum(rss(pid) for pid in web) / 2**20, used / 2**20

            started = time.monotonic()
            print("seconds   front door   Redis   (MiB)")
            row(0.0, *memory(), "idle")
            clients = [open_stream(stack, number, reader.tokens) for number in range(reader.streams)]
            for _ in range(int(reader.tokens / TOKENS_PER_SECOND / 5)):
                time.sleep(5)
                row(time.monotonic() - started, *memory(), "")
            until(lambda: stack.fleet().living[0].in_flight == 0, 300, "the worker has generated all")
            row(time.monotonic() - started, *memory(), "all generated")
            whole = sum(read_to_end(client) > 0 for client in clients)
            row(time.monotonic() - started, *memory(), "all read")
            print(f"whole, in order: {whole} of {reader.streams}")
            return 0 if whole == reader.streams else 1
        finally:
            stack.close()


if __name__ == "__main__":
    sys.exit(main())
