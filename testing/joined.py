"""Streams of ``/v1`` put together to the answer that they would have been whole."""

import json
from collections.abc import Callable, Iterator
from typing import Any


def joined(path: str, stream: str) -> dict[str, Any]:
    """Return the whole answer that a stream of ``path`` tells: what its client ends up with, ids left out."""
    return _JOINERS[path](list(_documents(stream)))


def as_joined(path: str, whole: dict[str, Any]) -> dict[str, Any]:
    """Return a whole answer as :func:`joined` returns it."""
    if path == "/v1/chat/completions":
        return {"choices": [_message(choice) for choice in whole["choices"]], "usage": _without_nulls(whole["usage"])}
    if path == "/v1/completions":
        choices = [{name: choice[name] for name in ("text", "finish_reason")} for choice in whole["choices"]]
        for choice, described in zip(whole["choices"], choices, strict=True):
            described["logprobs"] = _lists(choice.get("logprobs"))
        return {"choices": choices, "usage": _without_nulls(whole["usage"])}
    if path == "/v1/responses":
        return _response(whole)
    return {"content": [_block(block) for block in whole["content"]], "usage": whole["usage"]} | {
        name: whole.get(name) for name in ("stop_reason", "stop_sequence")
    }


def _documents(stream: str) -> Iterator[dict[str, Any]]:
    for event in stream.split("\n\n"):
        for line in event.splitlines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))


def _chat(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    choices: dict[int, dict[str, Any]] = {}
    usage: dict[str, Any] = {}
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for part in chunk["choices"]:
            empty = {"content": "", "reasoning": "", "calls": [], "logprobs": [], "finish_reason": None}
            choice, delta = choices.setdefault(part["index"], empty), part["delta"]
            choice["content"] += delta.get("content") or ""
            choice["reasoning"] += delta.get("reasoning") or ""
            for call in delta.get("tool_calls") or []:
                if call["index"] == len(choice["calls"]):
                    choice["calls"].append([call["function"]["name"], ""])
                choice["calls"][call["index"]][1] += call["function"].get("arguments") or ""
            choice["logprobs"] += (part.get("logprobs") or {}).get("content") or []
            choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
    return {"choices": [_with_arguments(choices[index]) for index in sorted(choices)], "usage": _without_nulls(usage)}


def _message(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice["message"]
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls") or []]
    return _with_arguments(
        {
            "content": message["content"] or "",
            "reasoning": message.get("reasoning") or "",
            "calls": calls,
            "logprobs": (choice["logprobs"] or {}).get("content") or [],
            "finish_reason": choice["finish_reason"],
        }
    )


def _with_arguments(choice: dict[str, Any]) -> dict[str, Any]:
    """Arguments as what they mean: vLLM writes those of a whole answer anew."""
    return {**choice, "calls": [[name, json.loads(arguments)] for name, arguments in choice["calls"]]}


def _completions(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    choices: dict[int, dict[str, Any]] = {}
    usage: dict[str, Any] = {}
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for part in chunk["choices"]:
            empty = {"text": "", "finish_reason": None, "logprobs": _lists(None)}
            choice = choices.setdefault(part["index"], empty)
            choice["text"] += part["text"]
            choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
            for name, values in _lists(part.get("logprobs")).items():
                choice["logprobs"][name] += values
    return {"choices": [choices[index] for index in sorted(choices)], "usage": _without_nulls(usage)}


def _lists(logprobs: dict[str, Any] | None) -> dict[str, list[Any]]:
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: list((logprobs or {}).get(name) or []) for name in names}


def _responses(events: list[dict[str, Any]]) -> dict[str, Any]:
    last = events[-1]
    response = last["response"]
    said = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    final = "".join(
        part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"]
    )
    assert said == final, (said, final)
    return _response(response)


def _response(response: dict[str, Any]) -> dict[str, Any]:
    return dict(response)


def _messages(events: list[dict[str, Any]]) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    for event in events:
        match event["type"]:
            case "message_start":
                found = {"usage": event["message"]["usage"]}
            case "content_block_start":
                assert event["index"] == len(blocks), event
                blocks.append({**event["content_block"], "json": ""})
            case "content_block_delta":
                _add(blocks[event["index"]], event["delta"])
            case "message_delta":
                found |= {name: event["delta"].get(name) for name in ("stop_reason", "stop_sequence")}
                found["usage"] = {**found["usage"], **event["usage"]}
    for block in blocks:
        written = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(written or "{}")
    return {**found, "content": [_block(block) for block in blocks]}


def _add(block: dict[str, Any], delta: dict[str, Any]) -> None:
    match delta["type"]:
        case "text_delta":
            block["text"] += delta["text"]
        case "thinking_delta":
            block["thinking"] += delta["thinking"]
        case "input_json_delta":
            block["json"] += delta["partial_json"]


def _block(block: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name not in ("id", "signature") and value is not None}


def _without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


_JOINERS: dict[str, Callable[[list[dict[str, Any]]], dict[str, Any]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/responses": _responses,
    "/v1/messages": _messages,
}
