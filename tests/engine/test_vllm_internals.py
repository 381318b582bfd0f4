"""What is relied on of vLLM 0.32 without its documentation saying so. A failure here names the part."""

import asyncio
import inspect
import os
import re
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (bin/test installs it)", allow_module_level=True)

with warnings.catch_warnings():
    # vLLM and torch warn of what they themselves use.
    warnings.simplefilter("ignore")
    import vllm
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector, RequestState
    from vllm.v1.engine.parallel_sampling import ParentRequest
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    from engines.vllm import internals, tuning
    from engines.vllm.core_process import CoreStart
    from engines.vllm.internals import application

VERSION = f"vllm {vllm.__version__}"


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_a_collector_holds_one_output_and_an_event() -> None:
    async def look() -> None:
        collector = RequestOutputCollector(RequestOutputKind.DELTA, "r")
        assert collector.output is None
        assert collector.aggregate is True
        assert isinstance(collector.ready, asyncio.Event)
        assert collector.get_nowait() is None

    asyncio.run(look())


def test_outputs_are_made_of_new_tokens_by_one_method() -> None:
    # What is held back is given to it later, as new.
    names = ["self", "new_token_ids", "pooling_output", "finish_reason", "stop_reason"]
    assert parameters(RequestState.make_request_output)[:5] == names, VERSION
    source = inspect.getsource(OutputProcessor)
    # With its tokens as they come, and without any when a request is aborted.
    assert source.count(".make_request_output(") == 2, VERSION
    assert "if request_output := req_state.make_request_output(" in source, VERSION


def test_a_streams_chunks_are_made_by_one_generator_each() -> None:
    names = ["self", "request", "result_generator"]
    assert parameters(OpenAIServingChat.chat_completion_stream_generator)[:3] == names, VERSION
    names = ["self", "request", "engine_inputs", "result_generator"]
    assert parameters(OpenAIServingCompletion.completion_stream_generator)[:4] == names, VERSION


def test_each_request_is_registered_and_sent_by_one_method_each() -> None:
    registered = ["self", "request", "prompt", "parent_req", "request_index", "queue"]
    assert parameters(OutputProcessor.add_request) == registered, VERSION
    source = inspect.getsource(AsyncLLM.add_request) + inspect.getsource(AsyncLLM._add_request)
    assert source.count("self.output_processor.add_request(") == 2, VERSION
    assert source.count("self.engine_core.add_request_async(") == 2, VERSION
    # All choices are registered before the first one is sent.
    assert list(inspect.signature(ParentRequest.get_outputs).parameters)[1:] == [
        "child_request_id",
        "completion_output",
    ], VERSION
    assert callable(OutputProcessor.get_num_unfinished_requests), VERSION


def test_the_detokenizer_can_be_fed_by_hand() -> None:
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    assert parameters(IncrementalDetokenizer.from_new_request) == ["tokenizer", "request"], VERSION
    assert parameters(IncrementalDetokenizer.update)[1:] == ["new_token_ids", "stop_terminated"], VERSION
    assert parameters(IncrementalDetokenizer.get_next_output_text)[1:] == ["finished", "delta"], VERSION


def test_the_synchronous_engine_aborts_by_internal_id() -> None:
    assert "internal" in parameters(LLMEngine.abort_request), VERSION
    assert "stat_loggers" in parameters(LLMEngine.from_engine_args), VERSION


def test_the_openai_application_is_built_of_three_parts() -> None:
    assert parameters(application.build_app)[:3] == ["args", "supported_tasks", "model_config"], VERSION
    assert parameters(application.init_app_state)[:4] == ["engine_client", "state", "args", "supported_tasks"], VERSION


def test_a_core_s_process_begins_with_one_function() -> None:
    from vllm.v1.engine.utils import CoreEngineProcManager

    assert "target=EngineCoreProc.run_engine_core" in inspect.getsource(CoreEngineProcManager), VERSION
    # What a core gets as a pickle is only where its worker is.
    assert CoreStart(print).__reduce__()[1] == (os.getpid(),)
    name = f"{UniProcExecutor.__module__}.{UniProcExecutor.__qualname__}"
    assert name == internals.ONE_PROCESS_EXECUTOR, VERSION


def test_the_messages_that_the_ladder_reads_are_vllm_s() -> None:
    """``engines.vllm.tuning`` tells failures apart by these words."""
    folder = Path(vllm.__file__).parent
    words = {
        "estimated maximum model length is": "v1/core/kv_cache_utils.py",
        "KV cache is needed, which is larger than the available KV cache": "v1/core/kv_cache_utils.py",
        "No available memory for the cache blocks": "v1/core/kv_cache_utils.py",
        "Free memory on device": "v1/worker/utils.py",
    }
    for sentence, path in words.items():
        # A sentence may stand in several literals, on several lines.
        source = " ".join(re.sub(r"\s*f?\"\s*f?\"?", " ", (folder / path).read_text()).split())
        assert sentence in source, f"{VERSION}: {path} no longer says: {sentence}"
    for sentence in list(words)[1:]:
        assert tuning.is_memory_failure(f"ValueError: {sentence}")


def test_a_request_can_be_given_its_first_outputs_by_hand() -> None:
    from vllm.logprobs import append_logprobs_for_next_position
    from vllm.v1.engine.output_processor import RequestState

    completion = ["self", "token_ids", "finish_reason", "stop_reason"]
    assert parameters(RequestState._new_completion_output) == completion, VERSION
    assert parameters(RequestState._new_request_output)[:4] == ["self", "external_req_id", "outputs", "finished"], (
        VERSION
    )
    added = ["self", "request", "prompt", "parent_req", "request_index", "queue"]
    assert parameters(OutputProcessor.add_request) == added, VERSION
    assert parameters(OutputProcessor._finish_request) == ["self", "req_state"], VERSION
    assert parameters(append_logprobs_for_next_position)[0] == "request_logprobs", VERSION


def test_a_grammar_is_made_in_one_place_of_the_core() -> None:
    from vllm.v1.structured_output import StructuredOutputManager
    from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

    assert parameters(StructuredOutputManager._create_grammar) == ["self", "request"], VERSION
    bounds = parameters(StructuredOutputManager._get_constraint_bounds)
    assert bounds == ["self", "request", "spec_tokens", "spec_tokens_committed"], VERSION
    assert parameters(StructuredOutputGrammar.accept_tokens) == ["self", "request_id", "tokens"], VERSION


def test_chat_messages_and_responses_are_mended_by_subclasses() -> None:
    """Methods that are overridden, and what they are given; attributes that are set."""
    chat, messages, responses = (
        internals.OpenAIServingChat,
        internals.AnthropicServingMessages,
        internals.OpenAIServingResponses,
    )
    assert issubclass(messages, chat), VERSION
    # Asked without the application's routes (``engines.vllm.direct_streams``).
    for create in (chat.create_chat_completion, internals.OpenAIServingCompletion.create_completion):
        assert parameters(create) == ["self", "request", "raw_request"], VERSION
    assert parameters(chat.chat_completion_full_generator)[:3] == ["self", "request", "result_generator"], VERSION
    assert "self.parser_cls = " in inspect.getsource(chat.__init__), VERSION
    assert parameters(messages.message_stream_converter) == ["self", "generator"], VERSION
    assert parameters(messages.messages_full_converter) == ["self", "generator"], VERSION
    assert parameters(messages.to_chat_completion_request)[0] == "anthropic_request", VERSION
    assert parameters(messages.count_tokens)[:2] == ["self", "request"], VERSION
    completions = internals.OpenAIServingCompletion
    streaming = parameters(completions.completion_stream_generator)[:4]
    assert streaming == ["self", "request", "engine_inputs", "result_generator"], VERSION
    whole = parameters(completions.request_output_to_completion_response)[:3]
    assert whole == ["self", "final_res_batch", "request"], VERSION
    rendered = parameters(responses._render_resolved_response_inputs)
    assert rendered[:3] == ["self", "request", "prev_response"], VERSION
    for name in ("responses_full_generator", "responses_stream_generator", "create_error_response", "_check_model"):
        assert callable(getattr(responses, name)), (VERSION, name)
    made = inspect.getsource(responses.__init__)
    assert "self.parser = " in made and "self.response_store" in made, VERSION
    fields = internals.ResponsesRequest.model_fields
    assert {"request_id", "store", "previous_response_id", "chat_template_kwargs"} <= set(fields), VERSION


def test_a_parser_reads_an_answer_whole_and_by_tokens() -> None:
    parser = internals.Parser
    whole = ["self", "model_output", "request", "enable_auto_tools", "model_output_token_ids"]
    assert parameters(parser.parse) == whole, VERSION
    streamed = ["self", "delta_text", "delta_token_ids", "request", "prompt_token_ids", "finished"]
    assert parameters(parser.parse_delta) == streamed, VERSION
    assert callable(parser.set_prompt_token_ids), VERSION
