"""``cuda-vllm-async``: vLLM's AsyncLLM. The default."""

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient

from engines.vllm_engine import VllmEngine
from engines.vllm_pacing import PacedLLM
from engines.vllm_stats import LoadStats


class VllmAsyncEngine(VllmEngine):
    """A lone stream's tokens are passed on as the engine has them; those of many are merged (``chunk_merge_ms``)."""

    def _make_client(self, arguments: AsyncEngineArgs, load: LoadStats) -> EngineClient:
        client = PacedLLM.from_engine_args(arguments, stat_loggers=[load.factory()])
        assert isinstance(client, PacedLLM)
        client.merge(self.spec.chunk_merge_ms / 1000)
        return client
