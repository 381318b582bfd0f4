"""What a grammar is told of tokens that were delivered before: the very ones that it would have got one by one."""

import warnings
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (bin/test installs it)", allow_module_level=True)

with warnings.catch_warnings():
    # vLLM and torch warn of what they themselves use.
    warnings.simplefilter("ignore")
    from transformers import AutoTokenizer
    from vllm import SamplingParams
    from vllm.reasoning import ReasoningParserManager
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager
    from vllm.v1.worker.gpu_input_batch import CachedRequestState

    from engines.vllm.core_process import continue_requests, mark_delivered
    from testing import tool_model

TOKENIZER = AutoTokenizer.from_pretrained(tool_model.PATH)
PROMPT = TOKENIZER.encode("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")


@pytest.fixture(autouse=True)
def continued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests can begin in the middle, in this test alone."""
    monkeypatch.setattr(Request, "from_engine_core_request", Request.from_engine_core_request)
    monkeypatch.setattr(StructuredOutputManager, "_create_grammar", StructuredOutputManager._create_grammar)
    monkeypatch.setattr(CachedRequestState, "__post_init__", CachedRequestState.__post_init__)
    monkeypatch.setattr(NewRequestData, "from_request", NewRequestData.from_request)
    continue_requests()


class Grammar:
    """Takes everything, and remembers it."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        self.taken += tokens
        return True


def manager(parser: str | None) -> Any:
    """vLLM's own, without an engine around it."""
    made = StructuredOutputManager.__new__(StructuredOutputManager)
    made.tokenizer, made.enable_in_reasoning = TOKENIZER, False
    made.reasoner_cls = ReasoningParserManager.get_reasoning_parser(parser) if parser else None
    made.backend = SimpleNamespace(compile_grammar=lambda *args, **options: Grammar())
    return made


def request(delivered: list[int], count: int) -> Request:
    """A request as a core gets it; the last ``count`` tokens of its prompt are its answer's beginning."""
    parameters = SamplingParams(max_tokens=500, structured_outputs=StructuredOutputsParams(regex="[a-z]+"))
    return Request.from_engine_core_request(
        EngineCoreRequest(
            request_id="r",
            prompt_token_ids=[*PROMPT, *delivered],
            mm_features=None,
            sampling_params=mark_delivered(parameters, count) if count else parameters,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        ),
        None,
    )


THOUGHT = "<think>\nI see.\n"
CASES = {
    "no parser": (None, "abc"),
    "thoughts alone": ("qwen3", THOUGHT),
    "thoughts and text": ("qwen3", THOUGHT + "</think>\n\nabc"),
    "just their end": ("qwen3", THOUGHT + "</think>"),
    # The first token of a call ends the thoughts, and belongs to what the grammar binds.
    "thoughts end with a call": ("qwen3", THOUGHT + "<tool_call>\n{}"),
    "another parser": ("deepseek_r1", THOUGHT + "</think>abc"),
    "another parser, twice": ("deepseek_r1", THOUGHT + "</think>abc</think>d"),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_told_what_it_would_have_got_one_by_one(case: str) -> None:
    parser, text = CASES[case]
    delivered = TOKENIZER.encode(text)
    one_by_one, its_manager = request([], 0), manager(parser)
    expected = its_manager._create_grammar(one_by_one)
    one_by_one.structured_output_request.grammar = expected  # type: ignore[union-attr]
    for token in delivered:
        one_by_one.append_output_token_ids(token)
        its_manager.accept_tokens(one_by_one, [token])

    gone_on_with, its_manager = request(delivered, len(delivered)), manager(parser)
    grammar = its_manager._create_grammar(gone_on_with)
    assert grammar.taken == expected.taken
    ended = [each.structured_output_request.reasoning_ended for each in (one_by_one, gone_on_with)]  # type: ignore[union-attr]
    assert ended[0] == ended[1]


def test_what_was_delivered_is_output_and_no_prompt() -> None:
    delivered = TOKENIZER.encode("abc def")
    made = request(delivered, len(delivered))
    assert (list(made.prompt_token_ids or ()), list(made.output_token_ids)) == (PROMPT, delivered)
    assert (made.num_prompt_tokens, made.num_output_tokens) == (len(PROMPT), len(delivered))
    assert list(made.all_token_ids) == [*PROMPT, *delivered]
