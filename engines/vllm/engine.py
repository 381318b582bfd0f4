"""What both vLLM engines share: how they start and end, sleep, and answer the calls of ``/v1``.

They differ in the ``EngineClient`` underneath, which a subclass makes.
"""

import asyncio
import json
import logging
import multiprocessing
import os
import signal
from abc import abstractmethod
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

from prometheus_client import CollectorRegistry
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient

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
)
from engines.vllm.adapters import AdapterTable
from engines.vllm.arguments import chat_template_text, engine_arguments
from engines.vllm.chat import CHAT_PATH, Thoughts
from engines.vllm.cpu import prepare_cpu
from engines.vllm.embeddings import without_own_size
from engines.vllm.form_check import FormCheck
from engines.vllm.generation import Generation
from engines.vllm.internals import (
    EngineDeadError,
    cache_environment,
    guard_cores,
)
from engines.vllm.logging import EngineLog
from engines.vllm.openai_answer import OpenAIAnswers, is_error, is_opening, may_refuse_late, names_to_replace
from engines.vllm.openai_app import OpenAIApp
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
        self._generation: Generation | None = None
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
        template = chat_template_text(self.spec)
        self._client, self.spec = await start_with_tuning(self.spec, self._try)
        self._openai_app = await OpenAIApp.create(self._client, self.spec)
        client = self._require_client()
        check = FormCheck(client.renderer.tokenizer)
        self._answers = OpenAIAnswers(check)
        self._generation = Generation(client, self.spec, template, check)
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
        assert self._generation is not None
        async with aclosing(self._generation.generate(request, adapter)) as chunks:
            async for chunk in chunks:
                yield chunk

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
        # An answer that may be refused once it has begun: nothing goes out of it before there is more than a beginning.
        head: HttpStart | None = None
        held: list[HttpPart] = []
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
                    held.append(part)
                    if is_opening(part.data):
                        continue
                    yield head
                    for each in held:
                        yield each
                    head = None
                    continue
                yield part
            if head is not None:
                yield head
                for each in held:
                    yield each

    async def load_adapter(self, path: str) -> None:
        await self._adapters.loaded(self._require_client(), path)

    def info(self) -> EngineInfo:
        limit = self._client.model_config.max_model_len if self._client else self.spec.max_model_len or 0
        load = self._load
        return EngineInfo(self.spec.id, self.spec.engine, limit, load.running, load.waiting, load.peak_running)

    @property
    def metrics(self) -> CollectorRegistry | None:
        return self._load.metrics

    @property
    def dead(self) -> bool:
        return self._client is not None and self._client.errored

    def describe_end(self) -> str:
        codes = [process.exitcode for process in self._processes if process.exitcode is not None]
        if not codes:
            return super().describe_end()
        names = [signal.strsignal(-code) or f"signal {-code}" if code < 0 else f"status {code}" for code in codes]
        return f"its process ended with {', '.join(names)}"

    def _require_client(self) -> EngineClient:
        if self._client is None or self._client.errored:
            raise EngineDead(f"the engine of model {self.spec.id!r} is not running")
        return self._client
