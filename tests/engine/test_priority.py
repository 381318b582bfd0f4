"""vLLM's own scheduler serves the higher priority first, whatever order the requests came in."""

import asyncio
from contextlib import aclosing

import pytest

from engines.base import create_engine
from engines.model_spec import ModelSpec
from engines.types import GenerateRequest, Sampling
from settings import ROOT

pytestmark = pytest.mark.full


@pytest.mark.filterwarnings("ignore")
def test_the_scheduler_orders_what_waits_by_priority() -> None:
    spec = ModelSpec(
        id="demo",
        model_path=str(ROOT / "models" / "demo"),
        location=str(ROOT / "models" / "demo"),
        max_model_len=1024,
        kv_cache_memory_bytes=2**26,
        enforce_eager=True,
        # One at a time: the others wait in the scheduler.
        max_num_seqs=1,
    )
    ended: list[str] = []

    async def main() -> None:
        engine = create_engine(spec)
        await engine.start()
        running = asyncio.Event()

        async def ask(name: str, priority: int, tokens: int) -> None:
            request = GenerateRequest(
                name, "Tell me the story of the library", Sampling(tokens, 0.0), priority=priority
            )
            async with aclosing(engine.generate(request)) as chunks:
                async for _ in chunks:
                    running.set()
            ended.append(name)

        try:
            async with asyncio.timeout(120), asyncio.TaskGroup() as group:
                group.create_task(ask("first", 0, 200))
                await running.wait()
                for name, priority in (("low", 0), ("middle", 4), ("high", 9)):
                    group.create_task(ask(name, priority, 8))
        finally:
            await engine.stop()

    asyncio.run(main())
    assert ended == ["first", "high", "middle", "low"]
