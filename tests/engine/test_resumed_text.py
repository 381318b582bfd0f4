"""The text of a generation behind its seam, without an engine around it."""

import warnings
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from engines.types import Chunk
from settings import ROOT
from tests.conftest import require

pytestmark = pytest.mark.filterwarnings("ignore")
TEXT = "The queue is long. Then the worker ends here, and another one goes on."
STOP = "worker ends here"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "models" / "demo")


def test_a_stop_text_that_lies_across_the_seam_ends_the_answer(tokenizer: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.sampling_params import SamplingParams

        from engines.vllm.resume import ResumedText
    client: Any = SimpleNamespace(renderer=SimpleNamespace(tokenizer=tokenizer))
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    begins = next(n for n in range(len(tokens)) if "Then the w" in tokenizer.decode(tokens[:n]))
    ends = next(n for n in range(len(tokens)) if STOP in tokenizer.decode(tokens[:n]))
    assert ends > begins + 2
    parameters = SamplingParams(stop=[STOP], max_tokens=200)
    for seam in range(begins, ends):
        resumed = ResumedText(client, [1], parameters, tokens[:seam])
        assert not resumed.stopped
        said, reasons = "", []
        for token in tokens[seam:]:
            chunk = resumed.next(Chunk("", (token,)), None)
            said += chunk.text
            reasons.append(chunk.finish_reason)
            if chunk.finish_reason is not None:
                break
        assert reasons == [None] * (ends - seam - 1) + ["stop"], seam
        # What the first worker had said, and held back, is its own.
        whole = TEXT[: TEXT.index(STOP)]
        assert whole.endswith(said) and STOP not in said
