"""Which calls are asked past the routes of vLLM's application, and that their answers are the same."""

import asyncio
import json
from importlib.util import find_spec
from typing import Any

import pytest

from engines.base import create_engine
from engines.model_spec import ModelSpec
from engines.types import HttpCall, HttpPart, HttpStart
from settings import ROOT
from testing.joined import joined
from tests.conftest import require

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

_PATH = str(ROOT / "models" / "demo")
_CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Who are you?"}]})
_TEXT = ("/v1/completions", {"prompt": "Once"})
#: Path, body, and whether it goes past the routes.
CALLS: dict[str, tuple[tuple[str, dict[str, Any]], dict[str, Any], bool]] = {
    "chat, streamed": (_CHAT, {"stream": True, "stream_options": {"include_usage": True}}, True),
    "two choices, streamed": (_CHAT, {"stream": True, "n": 2, "temperature": 0.001}, True),
    "text, streamed": (_TEXT, {"stream": True}, True),
    "two texts, streamed": (("/v1/completions", {"prompt": ["Once", "Twice"]}), {"stream": True}, True),
    "chat, whole": (_CHAT, {"stream": False}, False),
    "refused by its value": (_CHAT, {"stream": True, "temperature": -1}, False),
    "refused by its length": (_TEXT, {"stream": True, "max_tokens": 5000}, False),
    "refused by its model": (_CHAT, {"stream": True, "model": "nope"}, False),
}


def told(path: str, body: str) -> Any:
    """What an answer says; a refusal, or a whole one, by its words."""
    if body.startswith("data: "):
        return joined(path, body)
    return {name: value for name, value in json.loads(body).items() if name in ("error", "choices", "usage")}


def test_streams_go_past_the_routes_and_say_the_same() -> None:
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    spec = ModelSpec(
        id="demo", model_path=_PATH, location=_PATH, max_model_len=1024, kv_cache_memory_bytes=2**26, enforce_eager=True
    )

    async def main() -> None:
        engine = create_engine(spec)
        await engine.start()
        application: Any = engine._openai_app  # type: ignore[attr-defined]
        routes, asked = application._app, []

        async def counted(*arguments: Any) -> None:
            asked.append(1)
            await routes(*arguments)

        application._app = counted

        async def read(path: str, body: dict[str, Any]) -> tuple[HttpStart, Any]:
            asked.clear()
            call = HttpCall(
                "call", path, json.dumps({"model": "demo", "temperature": 0, "max_tokens": 20, **body}).encode()
            )
            head, *parts = [part async for part in engine.openai(call)]
            assert isinstance(head, HttpStart)
            return head, told(path, b"".join(part.data for part in parts if isinstance(part, HttpPart)).decode())

        try:
            for name, ((path, body), more, direct) in CALLS.items():
                head, events = await read(path, {**body, **more})
                assert bool(asked) != direct, name
                assert (head.status >= 400) == name.startswith("refused"), (name, events)
                known, application._direct_streams._asked = application._direct_streams._asked, {}
                routed_head, routed = await read(path, {**body, **more})
                application._direct_streams._asked = known
                assert asked and (head, events) == (routed_head, routed), name
        finally:
            await engine.stop()

    asyncio.run(main())
