"""What both vLLM engines share: prompts, sampling, chunks and the OpenAI surface.

They differ in the ``EngineClient`` underneath, which a subclass makes.
"""

import asyncio
import json
import logging
import multiprocessing
import os
from abc import abstractmethod
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient
from vllm.inputs import tokens_input
from vllm.outputs import RequestOutput

from engines.base import Engine
from engines.errors import EngineDead, EngineError, EngineStartError, InvalidRequest, OutOfMemory
from engines.model_spec import ModelSpec
from engines.models.fetch import require_fetched
from engines.types import (
    Chunk,
    EngineInfo,
    GenerateRequest,
    HttpCall,
    HttpPart,
    HttpStart,
    Usage,
)
from engines.vllm.adapters import AdapterTable
from engines.vllm.arguments import chat_template_text, engine_arguments
from engines.vllm.chat import CHAT_PATH, Thoughts
from engines.vllm.core_process import mark_delivered
from engines.vllm.cpu import prepare_cpu
from engines.vllm.embeddings import without_own_size
from engines.vllm.form_check import FormCheck
from engines.vllm.internals import (
    EngineDeadError,
    EngineGenerateError,
    VLLMValidationError,
    cache_environment,
    default_sampling_params,
    guard_cores,
    has_chat_template,
    resumes_exactly,
    tokenize_chat,
    tokenize_text,
)
from engines.vllm.logging import EngineLog
from engines.vllm.openai_answer import OpenAIAnswers, is_error, may_refuse_late, names_to_replace
from engines.vllm.openai_app import OpenAIApp
from engines.vllm.resume import ResumedText
from engines.vllm.sampling import FORM, refused, sampling_params
from engines.vllm.starter import StarterThread
from engines.vllm.stats import LoadStats
from engines.vllm.tuning import is_memory_failure, start_with_tuning
from engines.vllm.warm_up import warm_up

log = logging.getLogger(__name__)

_STARTER = StarterThread()
#: How long an engine's process may take to end. Seconds.
_END_SECONDS = 20.0
#: How long an engine may take to move its weights to the host's memory, or back. Seconds.
_SLEEP_SECONDS = 60.0


class VllmEngine(Engine):
    """An :class:`Engine` on a vLLM ``EngineClient``."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._client: EngineClient | None = None
        self._openai_app: OpenAIApp | None = None
        self._answers: OpenAIAnswers | None = None
        self._adapters = AdapterTable(spec)
        self._template: str | None = None
        #: The model's own values, for what a request leaves open.
        self._default_sampling: dict[str, Any] = {}
        self._load = LoadStats()
        self._engine_log = EngineLog()
        self._processes: list[multiprocessing.process.BaseProcess] = []

    @abstractmethod
    def _make_client(
        self, arguments: AsyncEngineArgs, load: LoadStats, loop: asyncio.AbstractEventLoop
    ) -> EngineClient:
        """Start a client for ``loop``; blocks a thread until the model is loaded. Raises whatever vLLM raises."""

    async def start(self) -> None:
        # A fork of a process with threads, and perhaps CUDA, is not safe.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        prepare_cpu()
        guard_cores()
        require_fetched(self.spec)
        self._template = chat_template_text(self.spec)
        self._client, self.spec = await start_with_tuning(self.spec, self._try)
        self._default_sampling = default_sampling_params(self._client)
        self._openai_app = await OpenAIApp.create(self._client, self.spec)
        self._answers = OpenAIAnswers(FormCheck(self._require_client().renderer.tokenizer))
        self.warming = True
        await warm_up(self.spec, self._openai_app)
        cache_environment()

    async def _try(self, spec: ModelSpec) -> EngineClient:
        self._engine_log.clear()
        arguments = engine_arguments(spec, str(self._engine_log.config_file))
        try:
            before = set(multiprocessing.active_children())
            client = await _STARTER.run(self._make_client, arguments, self._load, asyncio.get_running_loop())
            self._processes = [child for child in multiprocessing.active_children() if child not in before]
            return client
        except Exception as error:
            errors = f"{error} {self._engine_log.recent_errors()}".strip()
            error_type = OutOfMemory if is_memory_failure(errors) else EngineStartError
            raise error_type(f"model {spec.id!r} did not start: {errors}") from error

    async def stop(self) -> None:
        if self._client is not None:
            await asyncio.to_thread(self._client.shutdown, timeout=0)
            await asyncio.to_thread(self._await_processes)
        self._engine_log.close()
        self._adapters.close()

    @property
    def can_sleep(self) -> bool:
        return self._client is not None and bool(self._client.model_config.enable_sleep_mode)

    async def sleep(self) -> None:
        # Level 1: the weights go to the host's memory; level 2 would drop them, and what a model computed of them.
        await self._sleeping(self._require_client().sleep(1))

    async def wake(self) -> None:
        await self._sleeping(self._require_client().wake_up())

    async def _sleeping(self, change: Coroutine[Any, Any, object]) -> None:
        try:
            async with asyncio.timeout(_SLEEP_SECONDS):
                await change
        except EngineDeadError as error:
            raise EngineDead(f"the engine of model {self.spec.id!r} stopped working") from error
        except Exception as error:
            raise EngineError(f"the engine of model {self.spec.id!r} failed to fall asleep or wake: {error}") from error

    def _await_processes(self) -> None:
        """Wait until the memory is free: until the engine's processes have ended."""
        for process in self._processes:
            process.join(_END_SECONDS)
            if process.is_alive():
                log.warning("A process of the engine does not end and is killed", extra={"model": self.spec.id})
                process.kill()
                process.join(_END_SECONDS)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        client = self._require_client()
        if not self.spec.generates:
            raise InvalidRequest("wrong_task", "modelId", f"Model {self.spec.id!r} is for {self.spec.task!r}")
        adapter = await self._adapters.loaded(client, request.adapter)
        try:
            prompt_ids = await self._tokenize(request)
        except VLLMValidationError as error:
            # Of the chat template: two turns of one role, say.
            raise InvalidRequest("invalid_value", "messages" if request.messages else "prompt", str(error)) from error
        limit = self._limit(request, len(prompt_ids))
        delivered_count = len(request.delivered)
        if delivered_count >= limit:
            yield Chunk("", (), "length", Usage(len(prompt_ids), delivered_count))
            return
        exactly = resumes_exactly(client.vllm_config)
        parameters = sampling_params(request, self._default_sampling, limit if exactly else limit - delivered_count)
        if delivered_count and exactly:
            parameters = mark_delivered(parameters, delivered_count)
        outputs = client.generate(
            tokens_input([*prompt_ids, *request.delivered]),
            parameters,
            request.request_id,
            lora_request=adapter,
            # vLLM serves the lowest number first.
            priority=-request.priority,
        )
        resumed = ResumedText(client, prompt_ids, parameters, request.delivered) if delivered_count else None
        usage = Usage(len(prompt_ids), delivered_count)
        if resumed is not None and resumed.stopped:
            yield Chunk("", (), "stop", usage)
            return
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    chunk = _chunk(output, usage)
                    usage = chunk.usage
                    if chunk.finish_reason == "error":
                        raise await self._failure(request)
                    if resumed is not None:
                        chunk = resumed.next(chunk, output.outputs[0].stop_reason)
                    yield chunk
                    if chunk.finish_reason is not None:
                        return
        except VLLMValidationError as error:
            raise refused(request, error) from error
        except EngineDeadError as error:
            raise EngineDead(f"the engine of model {self.spec.id!r} stopped working") from error
        except EngineGenerateError as error:
            if client.errored:
                raise EngineDead(f"the engine of model {self.spec.id!r} stopped working") from error
            if request.sampling.response_format is not None:
                raise await self._failure(request) from error
            raise EngineError(f"the engine of model {self.spec.id!r} failed: {error.__cause__ or error}") from error

    async def openai(self, call: HttpCall) -> AsyncGenerator[HttpStart | HttpPart, None]:
        client = self._require_client()
        assert self._openai_app is not None and self._answers is not None
        if call.adapter is not None:
            adapter = await self._adapters.loaded(client, call.adapter)
            assert adapter is not None
            self._openai_app.name_adapter(json.loads(call.body)["model"], adapter)
        call = without_own_size(call, client.model_config)
        answers, names = self._answers, names_to_replace(call)
        thoughts: Thoughts | None = None
        if self.spec.reasoning_parser is not None and call.path == CHAT_PATH:
            thoughts = Thoughts(call)
            call = thoughts.call
        head: HttpStart | None = None
        async with aclosing(self._openai_app.call(call)) as parts:
            # One loop for every part of every stream: what is rare is left to others.
            async for part in parts:
                if client.errored:
                    # The application would make an answer of it, with status 500.
                    raise EngineDead(f"the engine of model {self.spec.id!r} stopped working")
                if isinstance(part, HttpStart):
                    if part.status >= 400:
                        refusal, body = await answers.refusal(call, part, parts)
                        yield refusal
                        yield HttpPart(body)
                        return
                    if may_refuse_late(call):
                        head = part
                    else:
                        # At once: who relays it gets ready while the engine begins.
                        yield part
                    continue
                if is_error(part.data):
                    if head is not None:
                        refusal, body = await answers.late_refusal(call, part.data)
                        yield refusal
                        yield HttpPart(body)
                        return
                    part = HttpPart(await answers.error_event(call, part.data))
                elif names is not None:
                    part = HttpPart(part.data.replace(*names, 1), part.portions)
                if thoughts is not None:
                    part = thoughts.rename(part)
                if head is not None:
                    yield head
                    head = None
                yield part

    async def load_adapter(self, path: str) -> None:
        await self._adapters.loaded(self._require_client(), path)

    def info(self) -> EngineInfo:
        limit = self._client.model_config.max_model_len if self._client else self.spec.max_model_len or 0
        load = self._load
        return EngineInfo(self.spec.id, self.spec.engine, limit, load.running, load.waiting, load.peak_running)

    @property
    def dead(self) -> bool:
        return self._client is not None and self._client.errored

    def _require_client(self) -> EngineClient:
        if self._client is None or self._client.errored:
            raise EngineDead(f"the engine of model {self.spec.id!r} is not running")
        return self._client

    async def _tokenize(self, request: GenerateRequest) -> list[int]:
        client = self._require_client()
        can_chat = self._template is not None or has_chat_template(client)
        if request.messages and not can_chat:
            description = f"Model {self.spec.id!r} has no chat template: give it a 'prompt', or a template in its entry"
            raise InvalidRequest("unsupported_content", "messages", description)
        if request.messages or (self.spec.prompt_format == "chat" and can_chat):
            messages = list(request.messages) or [{"role": "user", "content": request.prompt}]
            return await tokenize_chat(client, messages, self._template)
        return await tokenize_text(client, request.prompt)

    def _limit(self, request: GenerateRequest, prompt_tokens: int) -> int:
        """Return how many tokens the whole answer may have, or raise ``InvalidRequest``."""
        context = self.info().max_model_len
        room = context - prompt_tokens
        if room < 1:
            raise InvalidRequest(
                "prompt_too_long",
                "messages" if request.messages else "prompt",
                f"The prompt has {prompt_tokens} tokens; the model's context holds {context}, the answer included",
            )
        wanted = request.sampling.max_new_tokens
        if wanted is None:
            default = self.spec.default_max_tokens
            return room if isinstance(default, str) else min(default, room)
        if wanted > room:
            raise InvalidRequest(
                "out_of_range",
                "generation.maxNewTokens",
                f"{wanted} is too large: after a prompt of {prompt_tokens} tokens "
                f"the model's context of {context} has room for {room}",
            )
        return wanted

    async def _failure(self, request: GenerateRequest) -> Exception:
        """Return why the engine gave an answer up: the form that was asked for, where that cannot be had."""
        assert self._answers is not None
        fault = await self._answers.find_fault({"response_format": request.sampling.response_format})
        if fault is None:
            return EngineError(f"the engine of model {self.spec.id!r} failed")
        return InvalidRequest("invalid_schema", FORM, f"The form that is asked for cannot be used: {fault[1]}")


def _chunk(output: RequestOutput, delivered_count: Usage) -> Chunk:
    """Map one DELTA output; ``delivered_count`` counts what came before it."""
    [completion] = output.outputs
    tokens = tuple(completion.token_ids)
    usage = Usage(delivered_count.prompt_tokens, delivered_count.completion_tokens + len(tokens))
    return Chunk(completion.text, tokens, completion.finish_reason if output.finished else None, usage)
