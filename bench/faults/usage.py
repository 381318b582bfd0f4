"""``python -m bench.faults usage [--seconds 180] [--clients 12]``: does what is billed equal what clients count?

Two tenants with two keys each, two workers, traffic over every face, and again and again a worker is killed
(``--fake``: every few seconds, on the fake engine, with two models). Each client adds up the usage that its answers
tell, or where a face's messages tell none, what ``GET /api/v1/inference/{id}`` says; at the end that is compared with
``GET /api/v1/usage`` for every key and model, to the token.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from settings import ROOT
from store.redis import keys as redis_keys
from store.sql import db
from store.sql.usage import UsageStore
from store.token_log import log as token_log
from testing.faces import Answer, Call, Grpc
from testing.faults.kinds import Fleet
from testing.sse import events
from testing.stack import Stack
from testing.waiting import until
from testing.websocket import receive, send, socket

_DEMO = {
    "model_path": str(ROOT / "models" / "demo"),
    "max_model_len": 8192,
    "kv_cache_memory_bytes": 2**28,
    "enforce_eager": True,
}
#: Real vLLM: a lost worker is back after a minute or two, on two cores.
_REAL = {"one": _DEMO}
#: The fake engine: after some seconds, so that many are lost. For the pipeline alone.
_FAKE = {name: {"model_path": "none", "engine": "fake", "tokensPerSecond": 150} for name in ("one", "two")}
#: What the fake engine answers.
_FAKE_KINDS = (
    "native",
    "native SSE",
    "native SSE, cancelled",
    "native SSE, left and resumed",
    "WebSocket",
    "gRPC",
    "chat",
    "chat stream",
)
_PROMPTS = ("Tell me the story of the library", "讲一个图书馆的故事", "What is vLLM?", "你好，请介绍一下自己")
#: Prompt and completion tokens.
Used = tuple[int, int]


@dataclass
class Count:
    """What one key's clients have counted of one model."""

    requests: int = 0
    prompt: int = 0
    completion: int = 0

    def add(self, used: Used) -> None:
        self.requests += 1
        self.prompt += used[0]
        self.completion += used[1]


@dataclass
class Books:
    """The clients' own count."""

    counts: dict[tuple[str, str], Count] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    #: Request -> its kind and what it used.
    requests: dict[str, tuple[str, Used]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, key: str, model: str, kind: str, used: Used, request_id: str) -> None:
        with self.lock:
            self.requests[request_id] = (kind, used)
            self.counts.setdefault((key, model), Count()).add(used)
            self.kinds[kind] += 1


class Client:
    """One key at every face."""

    def __init__(self, stack: Stack, key: str, grpc: Grpc) -> None:
        self.stack = stack
        self.key = key
        self.grpc = grpc
        self.request_id = ""
        headers = {"X-API-Key": key}
        self.http = httpx.Client(headers=headers, timeout=120, trust_env=False)
        self.native = f"{stack.base}/api/v1/inference"
        self.kinds: dict[str, Callable[[str, str, int], Used]] = {
            "native": self._native,
            "native SSE": self._native_stream,
            "native SSE, cancelled": self._cancelled,
            "native SSE, left and resumed": self._resumed,
            "WebSocket": self._websocket,
            "gRPC": self._grpc,
            "chat": self._chat,
            "chat stream": self._chat_stream,
            "completions stream": self._completions,
            "messages": self._messages,
            "responses": self._responses,
        }

    def _body(self, model: str, prompt: str, tokens: int) -> dict[str, Any]:
        return {"modelId": model, "prompt": prompt, "generation": {"maxNewTokens": tokens}}

    def _post(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.post(url, json=body)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        self._note(found)
        return found

    def _note(self, found: dict[str, Any]) -> None:
        """Remember whose answer it is."""
        inner = found.get("response") or found.get("message") or found
        if isinstance(inner, dict) and isinstance(inner.get("id"), str):
            self.request_id = f"gen-{re.split('[-_]', inner['id'], maxsplit=1)[-1]}"

    def _stream(self, url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with self.http.stream("POST", url, json=body) as response:
            if response.status_code != 200:
                raise AssertionError(response.read().decode())
            for event in events(response):
                if event.data and event.data != "[DONE]":
                    found = event.json()
                    if found.get("error"):
                        raise AssertionError(event.data)
                    self._note(found)
                    yield found

    def _native(self, model: str, prompt: str, tokens: int) -> Used:
        return _camel(self._post(self.native, self._body(model, prompt, tokens))["usage"])

    def _native_stream(self, model: str, prompt: str, tokens: int) -> Used:
        *_, last = self._stream(f"{self.native}/stream", self._body(model, prompt, tokens))
        return self._usage_of(last["id"])

    def _usage_of(self, request_id: str) -> Used:
        """What the request itself says that it used: a stream's chunks tell no tokens."""
        self.request_id = request_id
        return _camel(self.http.get(f"{self.native}/{request_id}").raise_for_status().json()["usage"])

    def _cut(self, model: str, prompt: str, tokens: int) -> tuple[str, str]:
        """Read some of a stream, and leave it; return its id and that of the last event."""
        with self.http.stream("POST", f"{self.native}/stream", json=self._body(model, prompt, tokens)) as response:
            if response.status_code != 200:
                raise AssertionError(response.read().decode())
            seen = [event for _, event in zip(range(6), (e for e in events(response) if e.data), strict=False)]
        # A short answer may be there as a whole.
        last = next(event for event in reversed(seen) if event.data != "[DONE]")
        return last.json()["id"], last.id

    def _cancelled(self, model: str, prompt: str, tokens: int) -> Used:
        request_id, _ = self._cut(model, prompt, tokens + 300)
        self.request_id = request_id
        answer = self.http.post(f"{self.native}/{request_id}/cancel")
        answer.raise_for_status()
        return _camel(answer.json()["usage"] or {})

    def _resumed(self, model: str, prompt: str, tokens: int) -> Used:
        request_id, last_event = self._cut(model, prompt, tokens + 100)
        headers = {"Last-Event-ID": last_event}
        with self.http.stream("GET", f"{self.native}/{request_id}/stream", headers=headers) as response:
            *_, last = (event.data for event in events(response) if event.data)
        assert last == "[DONE]", last
        return self._usage_of(request_id)

    def _websocket(self, model: str, prompt: str, tokens: int) -> Used:
        with socket(self.stack, self.key) as ws:
            send(ws, "start", ref="r", request=self._body(model, prompt, tokens))
            while True:
                frame = receive(ws)
                if frame["type"] == "error":
                    raise AssertionError(frame)
                if frame["type"] == "done":
                    return self._usage_of(frame["id"])

    def _grpc(self, model: str, prompt: str, tokens: int) -> Used:
        answer = Answer()
        self.grpc.follow(Call(self.key, model, prompt, tokens), answer)
        assert answer.finished, answer
        return self._usage_of(answer.request_id)

    def _chat(self, model: str, prompt: str, tokens: int) -> Used:
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
        return _openai(self._post(f"{self.stack.openai_base}/chat/completions", body)["usage"])

    def _chat_stream(self, model: str, prompt: str, tokens: int) -> Used:
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        *_, last = self._stream(f"{self.stack.openai_base}/chat/completions", body)
        return _openai(last["usage"])

    def _completions(self, model: str, prompt: str, tokens: int) -> Used:
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "stream": True}
        *_, last = self._stream(
            f"{self.stack.openai_base}/completions", body | {"stream_options": {"include_usage": True}}
        )
        return _openai(last["usage"])

    def _messages(self, model: str, prompt: str, tokens: int) -> Used:
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
        usage = self._post(f"{self.stack.openai_base}/messages", body)["usage"]
        return usage["input_tokens"], usage["output_tokens"]

    def _responses(self, model: str, prompt: str, tokens: int) -> Used:
        body = {"model": model, "input": prompt, "max_output_tokens": tokens, "stream": True}
        *_, last = self._stream(f"{self.stack.openai_base}/responses", body)
        usage = last["response"]["usage"]
        return usage["input_tokens"], usage["output_tokens"]


def _camel(usage: dict[str, Any]) -> Used:
    return usage.get("promptTokens", usage.get("prompt_tokens", 0)), usage.get(
        "completionTokens", usage.get("completion_tokens", 0)
    )


def _openai(usage: dict[str, Any]) -> Used:
    return usage["prompt_tokens"], usage["completion_tokens"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.faults usage", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--pause", type=float, default=4, help="seconds between a whole fleet and the next kill")
    parser.add_argument("--fake", action="store_true", help="the pipeline alone, with many more kills")
    arguments = parser.parse_args(sys.argv[2:])
    models: dict[str, Any] = _FAKE if arguments.fake else _REAL
    with tempfile.TemporaryDirectory(prefix="cy-llm-usage-") as folder:
        stack = Stack(Path(folder), models, env={"CY_LLM_WEB_THREADS": "128"})
        try:
            stack.start_web()
            stack.start_grpc()
            stack.spawn_background()
            fleet = Fleet(stack, ["--models", ",".join(models)])
            fleet.fill()
            return _run(stack, fleet, sorted(models), arguments)
        except AssertionError:
            for process in stack.processes:
                print(f"== {process.name} (status {process.popen.poll()})\n{process.tail()}", file=sys.stderr)
            raise
        finally:
            stack.close()


def _run(stack: Stack, fleet: Fleet, models: list[str], arguments: argparse.Namespace) -> int:
    keys: dict[str, str] = {}
    with stack.http() as http:
        for name, tenant in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")):
            body = {"name": name, "tenant": tenant, "scopes": ["inference"]}
            made = http.post("/keys", json=body).raise_for_status().json()
            keys[name] = made["key"]
    grpc, books, ends = Grpc(stack), Books(), time.monotonic() + arguments.seconds

    def ask(number: int) -> None:
        rng = random.Random(number)
        name = sorted(keys)[number % len(keys)]
        client = Client(stack, keys[name], grpc)
        kinds = [kind for kind in sorted(client.kinds) if not arguments.fake or kind in _FAKE_KINDS]
        while time.monotonic() < ends:
            kind, model = rng.choice(kinds), rng.choice(models)
            try:
                used = client.kinds[kind](model, rng.choice(_PROMPTS), rng.randint(5, 200))
            except Exception as error:
                with books.lock:
                    books.errors.append(f"{kind}: {error!r:.300}")
            else:
                books.add(name, model, kind, used, client.request_id)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(arguments.clients)]
    for thread in threads:
        thread.start()
    kills = 0
    while time.monotonic() < ends - 5:
        time.sleep(arguments.pause)
        victim = fleet.busiest()
        os.killpg(victim.pid, signal.SIGKILL)
        victim.wait(10)
        kills += 1
        fleet.fill()
    for thread in threads:
        thread.join()
    grpc.close()
    return _compare(stack, books, kills)


def _compare(stack: Stack, books: Books, kills: int) -> int:
    def rows() -> dict[tuple[str, str], Count]:
        with stack.http() as http:
            found = http.get("/usage", params={"group": "key,model"}).raise_for_status().json()["rows"]
        return {
            (row["keyName"], row["model"]): Count(row["requests"], row["promptTokens"], row["completionTokens"])
            for row in found
        }

    total = sum(count.requests for count in books.counts.values())
    # Of those that failed some are booked too: so all that there is.
    until(lambda: stack.client.xlen(redis_keys.bills()) == 0, 60, "all requests are booked")
    billed = rows()
    print(f"{kills} workers killed, {total} requests, {len(books.errors)} that failed\n")
    print("| key | model | requests: clients / billed | prompt tokens | completion tokens | |")
    print("|---|---|---|---|---|---|")
    exact = True
    for key in sorted({*books.counts, *billed}):
        own, bill = books.counts.get(key, Count()), billed.get(key, Count())
        same = own == bill
        exact = exact and same
        print(
            f"| {key[0]} | {key[1]} | {own.requests} / {bill.requests} | {own.prompt} / {bill.prompt} | "
            f"{own.completion} / {bill.completion} | {'exact' if same else 'DIFFERS'} |"
        )
    print("\n" + ", ".join(f"{kind} {count}" for kind, count in sorted(books.kinds.items())))
    for difference in _differences(stack, books):
        print(f"<!-- {difference} -->")
    for error in books.errors[:20]:
        print(f"<!-- {error} -->")
    return 0 if exact and not books.errors else 1


def _differences(stack: Stack, books: Books) -> list[str]:
    """The requests that are booked otherwise than their clients counted them."""
    engine = db.connect(stack.database_url)
    store, found = UsageStore(db.sessions(engine)), []
    for request_id, (kind, used) in books.requests.items():
        record = store.record(request_id)
        booked = None if record is None else (record.prompt_tokens, record.completion_tokens)
        if booked != used:
            entries = token_log.read(stack.client, request_id)
            last = entries[-1].data.decode()[:300] if entries else "no log"
            found.append(f"{request_id} {kind}: counted {used}, booked {booked}; {last}")
    engine.dispose()
    return found
