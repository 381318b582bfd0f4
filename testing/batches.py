"""Batches as tests make them and read what came of them, by OpenAI's own client."""

import json
from typing import Any

import openai
from openai.types import Batch as BatchShape

from testing.waiting import until

ENDED = ("completed", "failed", "expired", "cancelled")


def line(custom_id: Any, prompt: str = "go on", url: str = "/v1/chat/completions", **more: Any) -> str:
    body = {"model": "fake", "max_tokens": 3, "messages": [{"role": "user", "content": prompt}], **more}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}, ensure_ascii=False)


def upload(sdk: openai.OpenAI, text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    return sdk.files.create(file=("in.jsonl", data), purpose="batch").id


def create(sdk: openai.OpenAI, text: str | bytes, endpoint: Any = "/v1/chat/completions", **more: Any) -> BatchShape:
    return sdk.batches.create(input_file_id=upload(sdk, text), endpoint=endpoint, completion_window="24h", **more)


def finish(sdk: openai.OpenAI, batch_id: str, seconds: float = 60) -> BatchShape:
    found = until(lambda: (batch := sdk.batches.retrieve(batch_id)).status in ENDED and batch, seconds, "it ends")
    assert isinstance(found, BatchShape)
    return found


def results(sdk: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    text = sdk.files.content(file_id).text
    assert text.endswith("\n")
    return [json.loads(each) for each in text.splitlines()]
