"""``python -m bench.faces [--streams 64] [--tokens 500] [--rounds 5]``: gRPC beside SSE, in one run.

The fake engine makes tokens as fast as it can (chunks merge when their consumer is behind), or with
``--pace N`` N a second for each stream. Both clients parse every message. Rounds alternate; prints
tokens a second of each face and the median of the paired ratios.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import grpc

from bench.streams import follow
from testing.processes import children, cpu
from testing.stack import KEY, Stack
from webapp.rpc import ai_service_pb2 as pb
from webapp.rpc import ai_service_pb2_grpc as services_pb


async def sse(stack: Stack, streams: int, tokens: int) -> float:
    started = time.monotonic()
    seen = await asyncio.gather(*(follow(stack.port, number, tokens, parse=True) for number in range(streams)))
    assert all(one.done for one in seen), [one.error for one in seen if not one.done]
    return streams * tokens / (time.monotonic() - started)


async def rpc(stack: Stack, streams: int, tokens: int) -> float:
    metadata = (("x-api-key", KEY),)

    async def one(stub: services_pb.AIServiceStub, number: int) -> int:
        request = pb.StreamPredictRequest(model_id="load", prompt=f"p{number}")
        request.generation.max_new_tokens = tokens
        last = None
        async for message in stub.StreamPredict(request, metadata=metadata):
            last = message
        assert last is not None
        assert last.end_of_stream
        return int(last.completion_tokens)

    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.grpc_port}") as channel:
        stub = services_pb.AIServiceStub(channel)
        await one(stub, 0)
        started = time.monotonic()
        counts = await asyncio.gather(*(one(stub, number) for number in range(streams)))
        took = time.monotonic() - started
    assert counts == [tokens] * streams
    return streams * tokens / took


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.faces", description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pace", type=float, default=0.0)
    arguments = parser.parse_args()
    models = {"load": {"model_path": "none", "engine": "fake", "tokensPerSecond": arguments.pace}}
    with tempfile.TemporaryDirectory(prefix="cy-llm-faces-") as folder:
        stack = Stack(Path(folder), models)
        try:
            stack.start_worker("load", ["--models", "load"])
            web = children(stack.start_web().pid)
            server = stack.start_grpc()
            asyncio.run(sse(stack, arguments.streams, 20))
            asyncio.run(rpc(stack, arguments.streams, 20))
            rows = []
            used = {"SSE": 0.0, "gRPC": 0.0}
            for _ in range(arguments.rounds):
                before = sum(cpu(pid) for pid in web), cpu(server.pid)
                first = asyncio.run(sse(stack, arguments.streams, arguments.tokens))
                rows.append((first, asyncio.run(rpc(stack, arguments.streams, arguments.tokens))))
                used["SSE"] += sum(cpu(pid) for pid in web) - before[0]
                used["gRPC"] += cpu(server.pid) - before[1]
            total = arguments.rounds * arguments.streams * arguments.tokens
            for index, name in enumerate(used):
                rate = statistics.median(row[index] for row in rows)
                print(f"{name:<5} {rate:8.0f} tokens/s, its process {used[name] / total * 1e6:.0f} us of CPU a token")
            ratios = sorted(grpc_rate / sse_rate for sse_rate, grpc_rate in rows)
            print(f"ratio {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})")
            return 0
        finally:
            stack.close()


if __name__ == "__main__":
    sys.exit(main())
