"""Calls of ``/v1`` that are stopped in the middle: the engine works for nobody any more when they have ended."""

import asyncio
import json
from contextlib import aclosing, suppress
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest

from engines.base import create_engine
from engines.model_spec import ModelSpec
from engines.types import HttpCall, HttpPart
from settings import ROOT
from tests.conftest import require

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

_PATH = str(ROOT / "models" / "demo")
_MESSAGES = [{"role": "user", "content": "Tell a story"}]
_CHAT = {"messages": _MESSAGES, "max_tokens": 900, "ignore_eos": True}
#: What is asked, and whether its tokens are left for whoever goes on.
CALLS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "chat": ("/v1/chat/completions", _CHAT, True),
    "chat, streamed": ("/v1/chat/completions", {**_CHAT, "stream": True}, False),
    "chat, two choices": ("/v1/chat/completions", {**_CHAT, "n": 2, "temperature": 1}, False),
    "chat with measures": ("/v1/chat/completions", {**_CHAT, "logprobs": True}, False),
    "chat, two choices, streamed": ("/v1/chat/completions", {**_CHAT, "n": 2, "temperature": 1, "stream": True}, False),
    "text": ("/v1/completions", {"prompt": "Once", "max_tokens": 900, "ignore_eos": True}, True),
    "text, streamed": (
        "/v1/completions",
        {"prompt": "Once", "max_tokens": 900, "ignore_eos": True, "stream": True},
        False,
    ),
    "two texts": ("/v1/completions", {"prompt": ["Once", "Twice"], "max_tokens": 900, "ignore_eos": True}, False),
    "a response": ("/v1/responses", {"input": "Tell a story", "max_output_tokens": 900, "ignore_eos": True}, True),
    "messages": ("/v1/messages", {"messages": _MESSAGES, "max_tokens": 900, "min_tokens": 900}, True),
}


def test_nothing_runs_on_for_who_left() -> None:
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    spec = ModelSpec(
        id="demo", model_path=_PATH, location=_PATH, max_model_len=1024, kv_cache_memory_bytes=2**26, enforce_eager=True
    )

    async def main() -> None:
        engine = create_engine(spec)
        await engine.start()
        client: Any = engine._client  # type: ignore[attr-defined]

        async def read(call: HttpCall, most: int = 10**6) -> None:
            async with aclosing(engine.openai(call)) as parts:
                async for part in parts:
                    most -= isinstance(part, HttpPart)
                    if not most:
                        return

        try:
            for name, (path, body, kept) in CALLS.items():
                call = HttpCall("call", path, json.dumps({"model": "demo", **body}).encode())
                reading = asyncio.create_task(read(call))
                async with asyncio.timeout(30):
                    while not client.unfinished_requests():
                        await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
                assert not reading.done(), f"{name}: it had its end"
                reading.cancel()
                with suppress(asyncio.CancelledError):
                    await reading
                assert client.unfinished_requests() == 0, name
                assert bool(call.unfinished) == kept, name
                if kept:
                    [portion] = call.unfinished
                    assert 0 < len(portion.tokens) == call.meter.completion_tokens < 900
                    assert portion.finish_reason is None and call.meter.prompt_tokens > 0
                if body.get("stream"):
                    # Not cancelled while it waits, but left between two parts.
                    await read(replace(call, request_id="left"), most=3)
                    assert client.unfinished_requests() == 0, name
        finally:
            await engine.stop()

    asyncio.run(main())
