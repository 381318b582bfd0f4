"""Streams of ``/v1`` of every kind, reduced to what they say: without ids, times, and how they were cut into events."""

import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import httpx

from testing import tool_model
from testing.stack import KEY, Stack
from testing.tool_model import transcripts

#: With 16 bits what goes on behind a seam may fall otherwise between two equals.
MODELS = {"default": "tools", "models": {"tools": {**tool_model.ENTRY, "dtype": "float32"}}}
_ROWS = {"type": "object", "properties": {"rows": {"type": "array", "items": {"type": "integer"}}}}
_NONE = {"type": "object", "properties": {}}
_FORM = {
    "type": "object",
    "properties": {"rows": {"type": "array", "minItems": 90, "maxItems": 90, "items": {"enum": [0, 1, 22, 333]}}},
    "required": ["rows"],
    "additionalProperties": False,
}


def _asked(question: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": 700, **more}


_CHAT_TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": _ROWS}},
    {"type": "function", "function": {"name": "g", "parameters": _NONE}},
]
_USAGE = {"stream_options": {"include_usage": True}}
#: A word for each kind: its path and body.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/chat/completions", _asked(transcripts.COUNT, **_USAGE)),
    "thoughts": ("/chat/completions", _asked(transcripts.STORY, **_USAGE)),
    # Greedy but for the name: vLLM refuses several greedy choices.
    "two choices": ("/chat/completions", _asked(transcripts.COUNT, n=2, temperature=0.001, **_USAGE)),
    "penalties": (
        "/chat/completions",
        _asked(transcripts.COUNT, presence_penalty=0.05, frequency_penalty=0.02, **_USAGE),
    ),
    "tools (auto)": ("/chat/completions", _asked(transcripts.ROWS, tools=_CHAT_TOOLS, **_USAGE)),
    "JSON schema": (
        "/chat/completions",
        _asked("x", response_format={"type": "json_schema", "json_schema": {"name": "r", "schema": _FORM}}, **_USAGE),
    ),
    "completions": ("/completions", {"prompt": "I think of 1.", "max_tokens": 400, "ignore_eos": True, **_USAGE}),
    "messages": (
        "/messages",
        _asked(
            transcripts.ROWS,
            tools=[{"name": "f", "input_schema": _ROWS}, {"name": "g", "input_schema": _NONE}],
        ),
    ),
    "responses": (
        "/responses",
        {
            "input": transcripts.ROWS,
            "max_output_tokens": 700,
            "tools": [{"type": "function", **tool["function"]} for tool in _CHAT_TOOLS],  # type: ignore[dict-item]
        },
    ),
}


#: Kinds that any model that chats can do, whatever it was taught, and the tokens that one of them may take.
PLAIN = ("chat", "two choices", "penalties", "JSON schema", "completions", "messages", "responses")
_PLAIN_TOKENS = 200


def plain_bodies() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return what is asked of a model that knows no tools: the same, shorter."""
    found = {}
    for kind in PLAIN:
        path, body = KINDS[kind]
        limit = "max_output_tokens" if path == "/responses" else "max_tokens"
        found[kind] = path, {**{k: v for k, v in body.items() if k != "tools"}, limit: _PLAIN_TOKENS}
    return found


@dataclass
class Said:
    """What one stream said."""

    answer_id: str = ""
    #: What was joined of deltas, by where it belongs.
    texts: dict[tuple[Any, ...], str] = field(default_factory=lambda: defaultdict(str))
    ends: list[Any] = field(default_factory=list)
    usages: list[int] = field(default_factory=list)
    #: Ids of calls and items, in their order.
    ids: list[str] = field(default_factory=list)
    events: int = 0
    done: bool = False
    error: str = ""
    longest_pause: float = 0.0

    def words(self) -> Any:
        """What is the same in every run."""
        return dict(self.texts), self.ends, self.usages, len(self.ids), self.done, self.error

    def take(self, path: str, event: dict[str, Any]) -> None:
        """Add one event."""
        self.events += 1
        if "error" in event:
            self.error = json.dumps(event["error"])
        elif path == "/messages":
            self._take_message(event)
        elif path == "/responses":
            self._take_response(event)
        else:
            self._take_chunk(event)

    def _take_chunk(self, chunk: dict[str, Any]) -> None:
        self.answer_id = chunk["id"]
        if chunk.get("usage"):
            self.usages.append(chunk["usage"]["total_tokens"])
        for choice in chunk["choices"]:
            delta = choice.get("delta") or {"content": choice.get("text")}
            for name in ("role", "content", "reasoning"):
                self.texts[choice["index"], name] += delta.get(name) or ""
            for call in delta.get("tool_calls") or []:
                self.ids += [call["id"]] if call.get("id") else []
                for name in ("name", "arguments"):
                    self.texts[choice["index"], call["index"], name] += call["function"].get(name) or ""
            self.ends += [choice["finish_reason"]] if choice["finish_reason"] else []

    def _take_message(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "message_start":
                self.answer_id = event["message"]["id"]
                self.usages.append(event["message"]["usage"]["input_tokens"])
            case "content_block_start":
                block = event["content_block"]
                self.ids += [block["id"]] if "id" in block else []
                self.texts[event["index"], "begins"] += f"{block['type']} {block.get('name')}"
            case "content_block_delta":
                for name in ("text", "thinking", "partial_json"):
                    self.texts[event["index"], name] += event["delta"].get(name) or ""
            case "content_block_stop":
                self.ends.append(event["index"])
            case "message_delta":
                self.ends.append(event["delta"]["stop_reason"])
                self.usages.append(event["usage"]["output_tokens"])
            case "message_stop":
                self.done = True

    def _take_response(self, event: dict[str, Any]) -> None:
        if event["sequence_number"] != self.events - 1:
            self.error = f"event {event['sequence_number']} came as number {self.events - 1}"
        if "response" in event:
            self.answer_id = event["response"]["id"].replace("_", "-")
        if event["type"].endswith(".delta"):
            self.texts[event["output_index"], event["type"]] += event["delta"]
        elif event["type"] == "response.output_item.added":
            self.ids.append(event["item"]["id"])
        elif event["type"] == "response.output_item.done":
            self.ends.append((event["output_index"], event["item"]["type"], event["item"].get("status")))
        elif event["type"] in ("response.completed", "response.incomplete", "response.failed"):
            self.ends.append(event["response"]["status"])
            self.usages.append((event["response"]["usage"] or {}).get("total_tokens", 0))
            self.done = [item["id"] for item in event["response"]["output"]] == self.ids


class OpenAIStream:
    """One stream, followed to its end in the calling thread; :attr:`said` can be looked at meanwhile."""

    def __init__(self, stack: Stack, kind: str, bodies: dict[str, tuple[str, dict[str, Any]]] = KINDS) -> None:
        self._stack = stack
        self._path, body = bodies[kind]
        self._body = {"model": "tools", "temperature": 0, "stream": True, **body}
        self.said = Said()

    def run(self) -> Said:
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=self._stack.openai_base, headers=headers, trust_env=False, timeout=150) as http:
            try:
                with http.stream("POST", self._path, json=self._body) as answer:
                    self._read(answer)
            except httpx.HTTPError as error:
                self.said.error = repr(error)
        return self.said

    def _read(self, answer: httpx.Response) -> None:
        if answer.status_code != 200:
            self.said.error = f"{answer.status_code} {answer.read()!r}"
            return
        last = time.monotonic()
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                self.said.done = True
            elif line.startswith("data: "):
                self.said.take(self._path, json.loads(line.removeprefix("data: ")))
                now = time.monotonic()
                if self.said.events > 1:
                    self.said.longest_pause = max(self.said.longest_pause, now - last)
                last = now
