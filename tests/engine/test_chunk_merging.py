"""The collector that merges outputs, on vLLM's own outputs."""

import asyncio
import time
import warnings

import pytest

with warnings.catch_warnings():
    # What torch and vLLM say to each other while they are imported.
    warnings.simplefilter("ignore")
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.output_processor import RequestOutputCollector

    from engines.vllm.chunk_merging import ChunkMerger, MergingCollector

pytestmark = pytest.mark.filterwarnings("ignore")

HOLD = 0.02


def output(text: str, finished: bool = False) -> RequestOutput:
    completion = CompletionOutput(0, text, [1], None, None, finish_reason="stop" if finished else None)
    return RequestOutput("r", None, [], None, [completion], finished)


def collector(streams: int, kind: RequestOutputKind = RequestOutputKind.DELTA) -> RequestOutputCollector:
    outputs = RequestOutputCollector(kind, "r")
    ChunkMerger(HOLD, lambda: streams).attach(outputs)
    return outputs


def text_of(found: RequestOutput) -> str:
    return str(found.outputs[0].text)


def test_the_first_output_and_the_last_are_not_held_and_what_is_between_is_merged() -> None:
    async def main() -> None:
        outputs = collector(streams=64)
        outputs.put(output("a"))
        assert text_of(outputs.get_nowait()) == "a"
        started = time.monotonic()
        outputs.put(output("b"))
        outputs.put(output("c"))
        assert outputs.get_nowait() is None
        assert text_of(await asyncio.wait_for(outputs.get(), 5)) == "bc"
        assert time.monotonic() - started >= HOLD * 0.9
        outputs.put(output("d"))
        outputs.put(output("e", finished=True))
        found = outputs.get_nowait()
        assert (text_of(found), found.finished) == ("de", True)

    asyncio.run(main())


def test_a_lone_stream_is_never_held() -> None:
    async def main() -> None:
        outputs = collector(streams=1)
        for text in "abc":
            outputs.put(output(text))
            assert text_of(outputs.get_nowait()) == text

    asyncio.run(main())


def test_an_engine_slower_than_the_beat_is_not_held() -> None:
    async def main() -> None:
        outputs = collector(streams=64)
        outputs.put(output("a"))
        outputs.get_nowait()
        await asyncio.sleep(HOLD * 1.5)
        outputs.put(output("b"))
        assert text_of(outputs.get_nowait()) == "b"

    asyncio.run(main())


def test_a_beat_that_comes_after_its_output_was_fetched_wakes_nobody() -> None:
    async def main() -> None:
        outputs = collector(streams=64)
        outputs.put(output("a"))
        outputs.get_nowait()
        outputs.put(output("b"))
        outputs.put(output("c", finished=True))
        assert text_of(outputs.get_nowait()) == "bc"
        waiting = asyncio.ensure_future(outputs.get())
        await asyncio.sleep(HOLD * 2)
        assert not waiting.done()
        outputs.put(ValueError("the engine died"))
        with pytest.raises(ValueError, match="the engine died"):
            await asyncio.wait_for(waiting, 5)

    asyncio.run(main())


def test_only_deltas_are_paced() -> None:
    assert isinstance(collector(2), MergingCollector)
    assert not isinstance(collector(2, RequestOutputKind.FINAL_ONLY), MergingCollector)
