"""vLLM's synchronous engine, stepped in a thread of its own, behind the ``EngineClient`` contract.

So everything that is built on an ``EngineClient`` (prompts, the OpenAI surface) works on
the synchronous engine as on the asynchronous one.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

from vllm.engine.arg_utils import EngineArgs
from vllm.engine.protocol import EngineClient
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from engines.vllm.call_tokens import CURRENT_CALL
from engines.vllm.continuation import noted
from engines.vllm.internals import EngineDeadError, SyncEngine
from engines.vllm.stats import LoadStats

log = logging.getLogger(__name__)

#: Put on a request's queue when the engine has failed.
_DEAD = object()


class SyncEngineClient(EngineClient):
    """Owns the thread that alone touches the ``LLMEngine``; everyone else sends it calls."""

    def __init__(self, arguments: EngineArgs, load: LoadStats, loop: asyncio.AbstractEventLoop) -> None:
        self._sync = SyncEngine(arguments, [load.factory()])
        self._engine = self._sync.engine
        self.vllm_config = self._engine.vllm_config
        self.model_config = self._engine.model_config
        self.renderer = self._engine.renderer
        self.input_processor = self._engine.input_processor
        self._load = load
        self._loop = loop
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._outputs: dict[str, asyncio.Queue[Any]] = {}
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="engine-step", daemon=True)
        self._thread.start()

    # The stepping thread.

    def _run(self) -> None:
        try:
            while self._serve_calls():
                outputs = self._engine.step()
                if outputs:
                    # One hop to the loop carries the outputs of the whole step.
                    self._loop.call_soon_threadsafe(self._deliver, outputs)
        except Exception as error:
            log.exception("The synchronous engine failed")
            self._error = error
            self._loop.call_soon_threadsafe(self._fail_all)
        finally:
            self._sync.shutdown()

    def _serve_calls(self) -> bool:
        """Run the calls that wait; block for one while there is nothing to step. False: stop."""
        while True:
            idle = not self._engine.has_unfinished_requests()
            if idle:
                # An idle engine makes no step, so no report would take the last one back.
                self._load.update(0, 0)
            try:
                call = self._calls.get(block=idle)
            except queue.Empty:
                return True
            if call is None:
                return False
            call()

    # The loop's thread.

    def _deliver(self, outputs: list[Any]) -> None:
        for output in outputs:
            if output.request_id in self._outputs:
                self._outputs[output.request_id].put_nowait(output)

    def _fail_all(self) -> None:
        for waiting in self._outputs.values():
            waiting.put_nowait(_DEAD)

    async def _on_engine(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``function`` in the stepping thread and return what it returned."""
        if self.errored or self._stopped:
            raise EngineDeadError()
        done = self._loop.create_future()

        def settle(set_value: Callable[[Any], None], value: Any) -> None:
            if not done.done():
                set_value(value)

        def call() -> None:
            try:
                value = function(*args, **kwargs)
            except Exception as error:
                self._loop.call_soon_threadsafe(settle, done.set_exception, error)
            else:
                self._loop.call_soon_threadsafe(settle, done.set_result, value)

        self._calls.put(call)
        return await done

    def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        """As vLLM's own; within a call, its tokens are counted."""
        outputs = self._generate(*args, **kwargs)
        call = CURRENT_CALL.get()
        if call is None:
            return outputs
        call.begin(args[1] if len(args) > 1 else kwargs["sampling_params"])
        call.continuable = False
        return call.read(noted(call, outputs))

    async def _generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        lora_request: LoRARequest | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        trace_headers: Any = None,
        priority: int = 0,
        **_: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        self._outputs[request_id] = outputs
        internal_id: str | None = None
        finished = False
        try:
            internal_id = await self._on_engine(
                self._engine.add_request,
                request_id,
                prompt,
                sampling_params,
                lora_request=lora_request,
                tokenization_kwargs=tokenization_kwargs,
                trace_headers=trace_headers,
                priority=priority,
            )
            while not finished:
                output = await outputs.get()
                if output is _DEAD:
                    raise EngineDeadError()
                finished = output.finished
                yield output
        finally:
            if self._outputs.get(request_id) is outputs:
                del self._outputs[request_id]
            if internal_id is not None and not finished and not self.errored:
                self._calls.put(lambda: self._sync.abort(internal_id))

    async def abort(self, request_id: str | Iterable[str]) -> None:
        ids = [request_id] if isinstance(request_id, str) else list(request_id)
        await self._on_engine(self._engine.abort_request, ids)

    async def get_supported_tasks(self) -> Any:
        return await self._on_engine(self._engine.get_supported_tasks)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive() and not self.errored

    @property
    def is_stopped(self) -> bool:
        return not self.is_running

    @property
    def errored(self) -> bool:
        return self._error is not None

    @property
    def dead_error(self) -> BaseException:
        return self._error or EngineDeadError()

    def shutdown(self, timeout: float | None = None) -> None:
        if not self._stopped:
            self._stopped = True
            self._calls.put(None)
            self._thread.join(timeout=30)

    async def check_health(self) -> None:
        if self.errored:
            raise self.dead_error

    async def is_tracing_enabled(self) -> bool:
        return False

    async def do_log_stats(self) -> None:
        await self._on_engine(self._engine.do_log_stats)

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        return bool(await self._on_engine(self._engine.add_lora, lora_request))

    async def reset_mm_cache(self) -> None:
        await self._on_engine(self._engine.reset_mm_cache)

    async def reset_encoder_cache(self) -> None:
        await self._on_engine(self._engine.reset_encoder_cache)

    async def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        return bool(await self._on_engine(self._engine.reset_prefix_cache, reset_running_requests, reset_connector))

    # What the synchronous engine cannot do says so, instead of doing half of it.

    def encode(self, *_: Any, **__: Any) -> Any:
        raise _unsupported("pooling")

    async def notify_kv_transfer_request_rejected(self, *_: Any, **__: Any) -> None:
        raise _unsupported("KV transfer")

    async def start_profile(self, *_: Any, **__: Any) -> None:
        raise _unsupported("profiling")

    async def stop_profile(self) -> None:
        raise _unsupported("profiling")

    async def sleep(self, *_: Any, **__: Any) -> None:
        raise _unsupported("sleep")

    async def wake_up(self, *_: Any, **__: Any) -> bool:
        raise _unsupported("sleep")

    async def is_sleeping(self) -> bool:
        return False

    async def release_kv_cache_memory(self) -> None:
        raise _unsupported("sleep")

    async def pause_generation(self, *_: Any, **__: Any) -> None:
        raise _unsupported("pausing")

    async def resume_generation(self) -> None:
        raise _unsupported("pausing")

    async def is_paused(self) -> bool:
        return False


def _unsupported(what: str) -> Exception:
    return RuntimeError(f"engine cuda-vllm does not support {what}; use cuda-vllm-async")
