"""``cuda-vllm-async``: vLLM's AsyncLLM. The default."""

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient
from vllm.v1.engine.async_llm import AsyncLLM

from engines.vllm_engine import VllmEngine
from engines.vllm_stats import LoadStats


class VllmAsyncEngine(VllmEngine):
    """Every token is passed on as soon as the engine has it."""

    def _make_client(self, arguments: AsyncEngineArgs, load: LoadStats) -> EngineClient:
        return AsyncLLM.from_engine_args(arguments, stat_loggers=[load.factory()])
