"""What compiles at its first use is used once, before a worker takes requests.

Each kind of sampling has kernels of its own, which PyTorch compiles when they are first called: the first request
with logprobs stopped every running stream for 17 seconds. Compiled code is kept on disk (``TORCHINDUCTOR_CACHE_DIR``),
so that later starts pay a fraction.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

from engines.model_spec import ModelSpec, Task
from engines.types import HttpCall, HttpStart
from engines.vllm.completions import COMPLETIONS_PATH
from engines.vllm.internals import EngineDeadError
from engines.vllm.openai_app import OpenAIApp

log = logging.getLogger(__name__)

_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
#: Kind of request -> what its body has beside a message. One answer and several: a batch of one is compiled apart.
_KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampling": {"temperature": 0.7, "top_p": 0.9, "n": 3},
    "top_k, min_p, seed": {"temperature": 0.7, "top_k": 20, "min_p": 0.05, "seed": 1, "n": 3},
    "penalties": {"frequency_penalty": 0.1, "presence_penalty": 0.1, "repetition_penalty": 1.1, "n": 3},
    "logit_bias, min_tokens, bad_words": {"logit_bias": {"5": 1}, "min_tokens": 2, "bad_words": ["zzz"], "n": 3},
    "logprobs": {"logprobs": True, "top_logprobs": 5},
    "logprobs of several": {"logprobs": True, "top_logprobs": 5, "n": 3},
    "logprobs without alternatives": {"logprobs": True},
    "prompt logprobs": {"prompt_logprobs": 5},
    "JSON schema": {"structured_outputs": {"json": _SCHEMA}, "n": 3},
    "regular expression": {"structured_outputs": {"regex": "[a-z]+"}},
}


#: Task -> the call that a model for it is warmed up with.
_POOLING: dict[str, tuple[str, dict[str, Any]]] = {
    Task.EMBED: ("/v1/embeddings", {"input": ["Hello", "How are you?"]}),
    Task.SCORE: ("/v1/score", {"text_1": "Hello", "text_2": ["Hello", "How are you?"]}),
    Task.CLASSIFY: ("/classify", {"input": ["Hello", "How are you?"]}),
}


async def warm_up(spec: ModelSpec, app: OpenAIApp) -> None:
    """Send one request of each kind through ``app``, and log how long each took. Raises ``EngineDeadError``."""
    took: dict[str, float] = {}
    for kind, call in _calls(spec, app.has_chat_template):
        started = time.monotonic()
        await _ask(spec.id, app, kind, call)
        took[kind] = round(time.monotonic() - started, 3)
    log.info("Warmed up", extra={"model": spec.id, "seconds": round(sum(took.values()), 3), "kinds": took})


def _calls(spec: ModelSpec, chats: bool) -> Iterator[tuple[str, HttpCall]]:
    """Yield the name of each kind and its call."""
    if not spec.generates:
        path, values = _POOLING[spec.task]
        yield spec.task, _call(path, {"model": spec.id, **values})
        return
    for kind, values in _KINDS.items():
        body = {"model": spec.id, "max_tokens": 3, **values}
        if chats:
            yield kind, _call("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": "Hello"}]})
        else:
            body |= {"prompt": "Hello", "logprobs": 5 if values.get("logprobs") else None}
            body.pop("top_logprobs", None)
            yield kind, _call(COMPLETIONS_PATH, body)


def _call(path: str, body: dict[str, Any]) -> HttpCall:
    return HttpCall("warm-up", path, json.dumps(body).encode())


async def _ask(model_id: str, app: OpenAIApp, kind: str, call: HttpCall) -> None:
    status, answer = 0, b""
    try:
        async with aclosing(app.call(call)) as parts:
            async for part in parts:
                if isinstance(part, HttpStart):
                    status = part.status
                else:
                    answer += part.data
    except EngineDeadError:
        raise
    except Exception as error:
        # A model may lack a kind; whoever asks for it is told.
        log.warning("A kind of request could not be warmed up: %s: %s", kind, error, extra={"model": model_id})
        return
    if status >= 400:
        words = answer[:300].decode(errors="replace")
        log.warning("A kind of request is refused by this model: %s: %s", kind, words, extra={"model": model_id})
