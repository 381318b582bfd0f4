"""What the tests of streams whose worker is killed share."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from testing.stack import Stack
from testing.waiting import until
from tests.conftest import require


@contextmanager
def two_workers(folder: Path, model: str, entry: dict[str, Any], **env: str) -> Iterator[Stack]:
    """A front door, and two workers of one model on real vLLM that may still load (:func:`both_ready`)."""
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    stack = Stack(folder, {"default": model, "models": {model: entry}}, env=env)
    try:
        stack.start_web()
        stack.spawn_worker("w1")
        stack.spawn_worker("w2")
        yield stack
    finally:
        stack.close()


@dataclass
class Answer:
    """What a client makes of a stream."""

    text: str = ""
    thoughts: str = ""
    roles: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    usages: list[tuple[int, int]] = field(default_factory=list)
    #: (id, created, model) of all chunks.
    heads: set[tuple[str, int, str]] = field(default_factory=set)
    #: Index -> ids, names and arguments of a tool call.
    calls: dict[int, tuple[list[str], list[str], str]] = field(default_factory=dict)
    #: Tokens that have a measure, with their texts and how likely they were.
    measured: list[tuple[str, float]] = field(default_factory=list)
    chunks: int = 0

    def add(self, chunk: Any) -> None:
        self.chunks += 1
        self.heads.add((chunk.id, chunk.created, chunk.model))
        if chunk.usage:
            self.usages.append((chunk.usage.prompt_tokens, chunk.usage.completion_tokens))
        for choice in chunk.choices:
            if choice.finish_reason:
                self.finish_reasons.append(choice.finish_reason)
            if not hasattr(choice, "delta"):
                self.text += choice.text
                if choice.logprobs:
                    self.measured += zip(choice.logprobs.tokens, choice.logprobs.token_logprobs, strict=True)
                continue
            self.roles += bool(choice.delta.role)
            self.text += choice.delta.content or ""
            self.thoughts += getattr(choice.delta, "reasoning", None) or ""
            if choice.logprobs:
                self.measured += [(each.token, each.logprob) for each in choice.logprobs.content]
            for call in choice.delta.tool_calls or []:
                ids, names, arguments = self.calls.get(call.index, ([], [], ""))
                ids += [call.id] if call.id else []
                names += [call.function.name] if call.function.name else []
                self.calls[call.index] = (ids, names, arguments + (call.function.arguments or ""))

    def same_words(self, other: "Answer") -> bool:
        """Whether two runs say the same; ids and times are each run's own."""
        return self._words() == other._words()

    def _words(self) -> Any:
        calls = {index: (len(ids), names, said) for index, (ids, names, said) in self.calls.items()}
        measured = [token for token, _ in self.measured]
        return self.text, self.thoughts, self.roles, self.finish_reasons, self.usages, calls, measured


def ask(stack: Stack, body: dict[str, Any], kill_at: int | None = None) -> Answer:
    answer = Answer()
    common = {"model": "demo", "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    with stack.openai() as client:
        create: Any = client.completions.create if "prompt" in body else client.chat.completions.create
        for chunk in create(**{**common, **body}):
            answer.add(chunk)
            if answer.chunks == kill_at:
                kill_worker_of(stack, chunk.id)
    return answer


def kill_worker_of(stack: Stack, answer_id: str) -> None:
    """Kill -9 the worker that makes an answer, and start another one in its place."""
    [(_, first)] = stack.client.xrange(log_of(answer_id), count=1)
    name = json.loads(first[b"d"])["worker"].partition("@")[0]
    process = next(each for each in reversed(stack.processes) if each.name == name)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    stack.spawn_worker(name)


def log_of(answer_id: str) -> str:
    """The key of an answer's token log."""
    return f"cy:log:gen-{answer_id.partition('-')[2]}"


def both_ready(stack: Stack) -> None:
    until(lambda: stack.find("w1") is not None and stack.find("w2") is not None, 240, "both workers are ready")
