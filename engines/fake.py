"""A deterministic engine without a model, for tests of the pipeline and for its measure.

A token is a space and a word of the prompt's own hash; the same prompt always gives the
same tokens. A prompt may steer it: ``[[stop:N]]`` ends
after N tokens.
"""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import AsyncGenerator

from engines.base import Engine, is_adapter_folder
from engines.errors import EngineDead, EngineError, InvalidRequest
from engines.model_spec import ModelSpec
from engines.types import (
    Chunk,
    EngineInfo,
    GenerateRequest,
    HttpCall,
    HttpPart,
    HttpStart,
    Portion,
    Sampling,
    Usage,
)

_MAX_MODEL_LEN = 8192
_STOP = re.compile(r"\[\[stop:(\d+)\]\]")


def token_text(prompt: str, index: int) -> str:
    """Return the text of token ``index`` (from 0) of the answer to ``prompt``."""
    digest = hashlib.blake2b(f"{index}\0{prompt}".encode(), digest_size=3).hexdigest()
    return f" {digest}"


class FakeEngine(Engine):
    """Implements the contract with words counted as tokens."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._running = 0
        self._peak = 0
        self._dead = False
        self._asleep = False
        self._step: asyncio.Event | None = None
        self._stepped = 0.0

    async def start(self) -> None:
        await asyncio.sleep(self.spec.start_seconds)

    async def stop(self) -> None:
        self._dead = True

    @property
    def can_sleep(self) -> bool:
        return bool(self.spec.sleep_mode)

    async def sleep(self) -> None:
        if self._running:
            raise EngineError(f"{self._running} requests run on model {self.spec.id!r}")
        self._asleep = True

    async def wake(self) -> None:
        self._asleep = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        if request.adapter is not None and not is_adapter_folder(request.adapter):
            raise InvalidRequest("adapter_not_found", "adapter", f"No adapter of that name exists for {self.spec.id!r}")
        prompt = request.prompt or _last_message({"messages": request.messages})
        prompt_tokens = len(prompt.split())
        count = self._count(request, prompt_tokens)
        finish = "length"
        if stop := _STOP.search(prompt):
            count, finish = min(count, int(stop.group(1))), "stop"
        self._running += 1
        self._peak = max(self._peak, self._running)
        first = len(request.delivered)
        try:
            for index in range(first, count):
                await self._next_step()
                last = index == count - 1
                yield Chunk(
                    text=token_text(prompt, index),
                    token_ids=(index,),
                    finish_reason=finish if last else None,
                    usage=Usage(prompt_tokens, index + 1),
                )
            if first >= count:
                yield Chunk("", (), finish, Usage(prompt_tokens, count))
        finally:
            self._running -= 1

    def _count(self, request: GenerateRequest, prompt_tokens: int) -> int:
        limit = self.spec.max_model_len or _MAX_MODEL_LEN
        room = limit - prompt_tokens
        if room < 1:
            raise InvalidRequest(
                "prompt_too_long", "prompt", f"The prompt has {prompt_tokens} tokens; the model's context holds {limit}"
            )
        wanted = request.sampling.max_new_tokens
        if wanted is None:
            default = self.spec.default_max_tokens
            bounds = (room, None if isinstance(default, str) else default, request.answer_ceiling)
            return min(bound for bound in bounds if bound is not None)
        if wanted > room:
            raise InvalidRequest(
                "out_of_range", "generation.maxNewTokens", f"At most {room} new tokens fit after this prompt"
            )
        return wanted

    async def _next_step(self) -> None:
        """Wait until the engine steps: all requests get their next token together, as in a real batch."""
        if self._dead:
            raise EngineDead("the fake engine was stopped")
        if self._asleep:
            raise EngineError("the fake engine was asked in its sleep")
        if not self.spec.tokens_per_second:
            await asyncio.sleep(0)
            return
        if self._step is None:
            self._step = asyncio.Event()
            loop = asyncio.get_running_loop()
            period = 1 / self.spec.tokens_per_second
            # A step follows the last one without a gap, or begins now when the engine was idle.
            period_start = self._stepped if loop.time() - self._stepped < period else loop.time()
            self._stepped = period_start + period
            loop.call_at(self._stepped, self._end_step, self._step)
        await self._step.wait()

    def _end_step(self, step: asyncio.Event) -> None:
        self._step = None
        step.set()

    async def openai(self, call: HttpCall) -> AsyncGenerator[HttpStart | HttpPart, None]:
        body = json.loads(call.body)
        chat = not call.path.endswith("/v1/completions")
        request = GenerateRequest(
            call.request_id,
            _last_message(body),
            Sampling(max_new_tokens=body.get("max_tokens")),
            delivered=tuple(token for portion in call.delivered for token in portion.tokens),
        )
        head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{call.request_id}",
            "created": int(time.time()),
            "model": call.asked_name or self.spec.id,
        }
        if body.get("stream"):
            yield HttpStart(200, "text/event-stream; charset=utf-8")
            async for part in self._stream(call, request, head, body.get("stream_options") or {}, chat):
                yield HttpPart(b"data: " + part.data + b"\n\n", part.portions)
            return
        chunks = [chunk async for chunk in self.generate(request)]
        text = "".join(chunk.text for chunk in chunks)
        content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        usage = chunks[-1].usage
        _count(call, usage)
        yield HttpStart(200, "application/json")
        answer = {
            **head,
            "object": "chat.completion" if chat else "text_completion",
            "choices": [{"index": 0, **content, "finish_reason": chunks[-1].finish_reason}],
            "usage": usage.to_dict(),
        }
        yield HttpPart(_json(answer))

    async def _replayed(self, call: HttpCall, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Yield what was delivered once more, then what follows."""
        usage = Usage(len(request.prompt.split()), 0)
        for portion in call.delivered:
            text = "".join(token_text(request.prompt, token) for token in portion.tokens)
            usage = Usage(usage.prompt_tokens, usage.completion_tokens + len(portion.tokens))
            yield Chunk(text, portion.tokens, portion.finish_reason, usage)
            if portion.finish_reason is not None:
                return
        async for chunk in self.generate(request):
            yield chunk

    async def _stream(
        self, call: HttpCall, request: GenerateRequest, head: dict, options: dict, chat: bool
    ) -> AsyncGenerator[HttpPart, None]:
        head = {**head, "object": "chat.completion.chunk" if chat else "text_completion"}
        if chat:
            delta: dict[str, str] = {"role": "assistant", "content": ""}
            yield HttpPart(_json({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}))
        usage = Usage(0, 0)
        async for chunk in self._replayed(call, request):
            usage = chunk.usage
            _count(call, usage)
            content = {"delta": {"content": chunk.text}} if chat else {"text": chunk.text}
            event = {**head, "choices": [{"index": 0, **content, "finish_reason": chunk.finish_reason}]}
            yield HttpPart(_json(event), (Portion(chunk.token_ids, chunk.finish_reason),))
        if options.get("include_usage"):
            yield HttpPart(_json({**head, "choices": [], "usage": usage.to_dict()}))
        yield HttpPart(b"[DONE]")

    async def load_adapter(self, path: str) -> None:
        """It has no weights that an adapter could change."""

    def info(self) -> EngineInfo:
        limit = self.spec.max_model_len or _MAX_MODEL_LEN
        return EngineInfo(self.spec.id, self.spec.engine, limit, running=self._running, peak_running=self._peak)

    @property
    def dead(self) -> bool:
        return self._dead


def _last_message(body: dict) -> str:
    if "prompt" in body:
        return str(body["prompt"])
    content = body["messages"][-1].get("content") or ""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _count(call: HttpCall, usage: Usage) -> None:
    call.meter.prompt_tokens, call.meter.completion_tokens = usage.prompt_tokens, usage.completion_tokens
