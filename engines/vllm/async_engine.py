"""``cuda-vllm-async``: vLLM's AsyncLLM. The default."""

import asyncio

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient

from engines.vllm.continuation import ContinuingAsyncLLM
from engines.vllm.engine import VllmEngine
from engines.vllm.internals import take_metrics
from engines.vllm.stats import LoadStats


class VllmAsyncEngine(VllmEngine):
    """A lone stream's tokens are passed on as the engine has them; those of many are merged (``chunk_merge_ms``)."""

    def _make_client(
        self, arguments: AsyncEngineArgs, load: LoadStats, loop: asyncio.AbstractEventLoop
    ) -> EngineClient:
        client = ContinuingAsyncLLM.from_engine_args(arguments, stat_loggers=[load.factory()])
        assert isinstance(client, ContinuingAsyncLLM)
        load.metrics = take_metrics()
        client.set_merge_limit(self.spec.chunk_merge_ms / 1000)
        return client
