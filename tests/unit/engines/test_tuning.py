"""The out-of-memory ladder, on the words that vLLM really says."""

import asyncio

import pytest

from engines.errors import EngineStartError, OutOfMemory
from engines.model_spec import ModelSpec
from engines.vllm.tuning import MAX_STEPS, is_memory_failure, next_smaller, start_with_tuning

#: From vLLM 0.32: ``v1/core/kv_cache_utils.py``, ``v1/worker/{gpu,cpu}_worker.py`` and torch.
TOO_LONG = (
    "To serve at least one request with the model's max seq len (8192), (0.01 GiB KV cache is needed, which is "
    "larger than the available KV cache memory (0.0 GiB). Based on the available memory, the estimated maximum "
    "model length is 3276. Try increasing `gpu_memory_utilization`"
)
NO_BLOCKS = "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"
NOT_FREE = "Free memory on device cuda:0 (10/80 GiB) on startup is less than desired GPU memory utilization (0.92"
CUDA = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB."


def spec(**values: object) -> ModelSpec:
    return ModelSpec(id="m", model_path="x", **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("message", [TOO_LONG, NO_BLOCKS, NOT_FREE, CUDA])
def test_memory_failures_are_recognised(message: str) -> None:
    assert is_memory_failure(message)


@pytest.mark.parametrize("message", ["No such file or directory", "Unknown quantization method", "ValueError: dtype"])
def test_other_failures_are_not(message: str) -> None:
    assert not is_memory_failure(message)


def test_the_length_that_fits_is_taken_at_once() -> None:
    step = next_smaller(spec(max_model_len=8192), TOO_LONG)
    assert step is not None
    assert step[0].max_model_len == 3276
    assert step[1] == "max_model_len 8192 -> 3276"


def test_a_share_that_others_hold_is_lowered_first_then_sequences_then_context() -> None:
    current, words = spec(max_model_len=1024), []
    while step := next_smaller(current, NOT_FREE):
        current = step[0]
        words.append(step[1].split(" ")[0])
    assert words == [
        *["gpu_memory_utilization"] * 5,
        *["max_num_seqs"] * 3,
        *["max_model_len"] * 2,
    ]
    assert (current.gpu_memory_utilization, current.max_num_seqs, current.max_model_len) == (0.5, 4, 256)


def attempt_that_fits(limit: int, tried: list[int | None]):  # type: ignore[no-untyped-def]
    async def start(candidate: ModelSpec) -> str:
        tried.append(candidate.max_num_seqs)
        if (candidate.max_num_seqs or 256) > limit:
            raise OutOfMemory(CUDA)
        return "running"

    return start


def test_starts_are_tried_until_one_fits(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int | None] = []
    result, fitted = asyncio.run(start_with_tuning(spec(), attempt_that_fits(20, tried)))
    assert (result, fitted.max_num_seqs) == ("running", 16)
    assert tried == [None, 64, 16]
    assert [record.getMessage().rsplit(": ")[-1] for record in caplog.records] == [
        "max_num_seqs 256 -> 64",
        "max_num_seqs 64 -> 16",
    ]


def test_the_ladder_ends_with_all_it_tried() -> None:
    tried: list[int | None] = []
    with pytest.raises(EngineStartError) as caught:
        asyncio.run(start_with_tuning(spec(max_model_len=600), attempt_that_fits(0, tried)))
    message = str(caught.value)
    assert "max_num_seqs 256 -> 64; max_num_seqs 64 -> 16; max_num_seqs 16 -> 4; max_model_len 600 -> 300" in message
    assert "CUDA out of memory" in message
    assert len(tried) <= MAX_STEPS + 1


def test_tuning_can_be_off() -> None:
    tried: list[int | None] = []
    with pytest.raises(EngineStartError, match="allow_auto_tuning"):
        asyncio.run(start_with_tuning(spec(allow_auto_tuning=False), attempt_that_fits(0, tried)))
    assert len(tried) == 1


def test_other_errors_are_not_retried() -> None:
    async def start(_: ModelSpec) -> None:
        raise EngineStartError("no such model")

    with pytest.raises(EngineStartError, match="no such model"):
        asyncio.run(start_with_tuning(spec(), start))
