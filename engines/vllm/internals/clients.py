"""Engines and their cores: what is hooked into them, begun and ended."""

from collections.abc import Callable
from typing import Any

import vllm.envs
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.engine.output_processor import RequestOutputCollector, RequestState

from engines.vllm.core_process import CoreStart

#: vLLM's executor that computes in the engine core's own process (what it names "uni").
ONE_PROCESS_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def cache_environment() -> None:
    """Let vLLM read its environment once.

    It looks into the environment for every output of every step, a third of a busy worker's
    interpreter time, and caches that in its core alone.
    """
    vllm.envs.enable_envs_cache()


def resumes_exactly(config: VllmConfig) -> bool:
    """Whether an engine goes on with a request as after a preemption (``engines.vllm.core_process``).

    vLLM's first model runner would have to be told in every process of a split model; its second one is.
    """
    return bool(config.use_v2_model_runner) or config.parallel_config.world_size == 1


class HookedAsyncLLM(AsyncLLM):
    """``AsyncLLM`` that shows each request before it is sent, and so before outputs come: vLLM has no place for that.

    A call for several choices is one request for each here.
    """

    #: Called with each request's state; it may change its class.
    on_state: Callable[[RequestState], None] = staticmethod(lambda state: None)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.resumes_exactly = resumes_exactly(self.vllm_config)
        register, send = self.output_processor.add_request, self.engine_core.add_request_async

        def add(
            request: EngineCoreRequest, prompt: str | None, parent: Any = None, choice: int = 0, queue: Any = None
        ) -> None:
            register(request, prompt, parent, choice, queue)
            if queue is not None:
                self.on_registered(request, choice, queue)

        async def send_changed(request: EngineCoreRequest) -> None:
            changed = self.before_sent(request)
            if changed is not None:
                await send(changed)

        self.output_processor.add_request = add
        self.engine_core.add_request_async = send_changed

    def on_registered(self, request: EngineCoreRequest, choice: int, queue: RequestOutputCollector) -> None:
        """The output processor knows a request, and nothing has come of it yet."""
        self.on_state(self.output_processor.request_states[request.request_id])

    def before_sent(self, request: EngineCoreRequest) -> EngineCoreRequest | None:
        """Return what is sent to the engine for a request; None sends nothing. All choices are registered by then."""
        return request

    def unfinished_requests(self) -> int:
        """How many requests the engine has."""
        return int(self.output_processor.get_num_unfinished_requests())


def guard_cores() -> None:
    """Let every engine core that this process starts begin with :class:`CoreStart`; vLLM has no hook there."""
    if not isinstance(EngineCoreProc.run_engine_core, CoreStart):
        EngineCoreProc.run_engine_core = CoreStart(EngineCoreProc.run_engine_core)


class SyncEngine:
    """vLLM's synchronous ``LLMEngine``, whose arguments and ends are not documented."""

    def __init__(self, arguments: EngineArgs | AsyncEngineArgs, stat_loggers: list[Any]) -> None:
        self.engine = LLMEngine.from_engine_args(arguments, stat_loggers=stat_loggers)

    def abort(self, internal_id: str) -> None:
        """Abort what ``add_request`` returned the id of: the public id may be in use again."""
        self.engine.abort_request([internal_id], internal=True)

    def shutdown(self) -> None:
        """Free the engine core; ``LLMEngine`` has no method for it."""
        self.engine.engine_core.shutdown()
