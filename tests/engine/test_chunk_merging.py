"""The merger of outputs, in vLLM's own output processor."""

import asyncio
import time
import warnings

import pytest

from settings import ROOT

with warnings.catch_warnings():
    # What torch and vLLM say to each other while they are imported.
    warnings.simplefilter("ignore")
    from transformers import AutoTokenizer
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

    from engines.vllm.chunk_merging import ChunkMerger, MergingState, UnmergedCollector

pytestmark = pytest.mark.filterwarnings("ignore")

HOLD = 0.02
TOKENIZER = AutoTokenizer.from_pretrained(ROOT / "models" / "demo")


def token(letter: str) -> int:
    [found] = TOKENIZER.encode(letter, add_special_tokens=False)
    return int(found)


class Request:
    """One request of an output processor, and who reads it."""

    def __init__(
        self,
        streams: int,
        kind: RequestOutputKind = RequestOutputKind.DELTA,
        unmerged: bool = False,
        **sampling: object,
    ) -> None:
        parameters = SamplingParams(output_kind=kind, max_tokens=100, **sampling)
        request = EngineCoreRequest(
            request_id="r",
            external_req_id="r",
            prompt_token_ids=[1, 2, 3],
            mm_features=None,
            sampling_params=parameters,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        self.processor = OutputProcessor(TOKENIZER, log_stats=False)
        self.queue = RequestOutputCollector(kind, "r")
        if unmerged:
            UnmergedCollector.attach(self.queue)
        self.processor.add_request(request, None, queue=self.queue)
        self.state = self.processor.request_states["r"]
        self.merger = ChunkMerger(HOLD, lambda: streams)
        self.merger.attach(self.state)

    def step(self, letter: str, reason: FinishReason | None = None) -> None:
        """The engine has made a token."""
        self.processor.process_outputs([EngineCoreOutput("r", [token(letter)], finish_reason=reason)])

    def take(self) -> tuple[str, list[int], bool] | None:
        """Return what its reader gets now: text, tokens, and whether that is the end."""
        return None if (found := self.queue.get_nowait()) is None else read(found)


def read(output: object) -> tuple[str, list[int], bool]:
    assert isinstance(output, RequestOutput)
    [completion] = output.outputs
    return completion.text, list(completion.token_ids), output.finished


def tokens(letters: str) -> list[int]:
    return [token(letter) for letter in letters]


def test_the_first_output_and_the_last_are_not_held_and_what_is_between_is_merged() -> None:
    async def main() -> None:
        request = Request(streams=64)
        request.step("a")
        assert request.take() == ("a", tokens("a"), False)
        started = time.monotonic()
        request.step("b")
        request.step("c")
        assert request.take() is None
        assert read(await asyncio.wait_for(request.queue.get(), 5)) == ("bc", tokens("bc"), False)
        assert time.monotonic() - started >= HOLD * 0.9
        request.step("d")
        request.step("e", FinishReason.LENGTH)
        assert request.take() == ("de", tokens("de"), True)

    asyncio.run(main())


def test_a_lone_stream_is_never_held() -> None:
    async def main() -> None:
        request = Request(streams=1)
        for letter in "abc":
            request.step(letter)
            assert request.take() == (letter, tokens(letter), False)

    asyncio.run(main())


def test_an_engine_slower_than_the_beat_is_not_held() -> None:
    async def main() -> None:
        request = Request(streams=64)
        request.step("a")
        request.take()
        await asyncio.sleep(HOLD * 1.5)
        request.step("b")
        assert request.take() == ("b", tokens("b"), False)

    asyncio.run(main())


def test_a_beat_that_comes_after_its_tokens_were_given_out_says_nothing() -> None:
    async def main() -> None:
        request = Request(streams=64)
        request.step("a")
        request.take()
        request.step("b")
        request.step("c", FinishReason.STOP)
        found = request.take()
        # The token that stops an answer is no text of it.
        assert found == ("b", tokens("bc"), True)
        waiting = asyncio.ensure_future(request.queue.get())
        await asyncio.sleep(HOLD * 2)
        assert not waiting.done()
        request.queue.put(ValueError("the engine died"))
        with pytest.raises(ValueError, match="the engine died"):
            await asyncio.wait_for(waiting, 5)

    asyncio.run(main())


def test_what_is_held_when_a_request_is_aborted_comes_with_its_end() -> None:
    async def main() -> None:
        request = Request(streams=64)
        request.step("a")
        request.take()
        request.step("b")
        request.processor.abort_requests(["r"], internal=True)
        assert request.take() == ("b", tokens("b"), True)
        await asyncio.sleep(HOLD * 2)
        assert request.take() is None

    asyncio.run(main())


def test_a_stop_text_is_found_in_what_is_held() -> None:
    async def main() -> None:
        request = Request(streams=64, stop=["cd"])
        for letter in "abc":
            request.step(letter)
        first = request.take()
        assert first is not None
        request.step("d")
        last = request.take()
        assert last is not None
        assert (first[0] + last[0], first[1] + last[1], last[2]) == ("ab", tokens("abcd"), True)

    asyncio.run(main())


def test_the_measures_of_what_was_held_come_with_it() -> None:
    async def main() -> None:
        import numpy
        from vllm.v1.outputs import LogprobsLists

        request = Request(streams=64, logprobs=0)
        for number, letter in enumerate("abcd"):
            measures = LogprobsLists(
                numpy.array([[token(letter)]]), numpy.array([[-float(number)]]), numpy.array([0]), None
            )
            end = FinishReason.LENGTH if letter == "d" else None
            output = EngineCoreOutput("r", [token(letter)], new_logprobs=measures, finish_reason=end)
            request.processor.process_outputs([output])
            if letter == "a":
                request.take()
        found = request.queue.get_nowait()
        assert isinstance(found, RequestOutput)
        assert [next(iter(each.values())).logprob for each in found.outputs[0].logprobs] == [-1.0, -2.0, -3.0]

    asyncio.run(main())


def test_only_deltas_that_may_be_merged_are() -> None:
    async def main() -> None:
        assert isinstance(Request(2).state, MergingState)
        assert not isinstance(Request(2, RequestOutputKind.FINAL_ONLY).state, MergingState)
        assert not isinstance(Request(2, unmerged=True).state, MergingState)

    asyncio.run(main())
