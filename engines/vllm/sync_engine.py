"""``cuda-vllm``: vLLM's synchronous engine. Chunks hold ``stream_chunk_size`` tokens."""

import asyncio

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient

from engines.vllm.engine import VllmEngine
from engines.vllm.stats import LoadStats
from engines.vllm.sync_client import SyncEngineClient


class VllmSyncEngine(VllmEngine):
    """Fewer, larger chunks; the first token still comes by itself."""

    def _make_client(
        self, arguments: AsyncEngineArgs, load: LoadStats, loop: asyncio.AbstractEventLoop
    ) -> EngineClient:
        arguments.stream_interval = self.spec.stream_chunk_size
        return SyncEngineClient(arguments, load, loop)
