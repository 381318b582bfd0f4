"""The one door to what vLLM 0.32 does not document. Nothing else in the project imports such a part.

Documented, and used elsewhere in this package: engine arguments, ``EngineClient``, sampling
parameters, outputs, inputs, ``LoRARequest``, ``current_platform``. All else passes here, each use with its
reason. ``tests/engine/test_vllm_internals.py`` checks what is relied on against the installed vLLM, and
names it, so that an upgrade fails there.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import vllm.envs
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensResponse, AnthropicMessagesResponse
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.generate.base.protocol import FunctionCall
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.responses.protocol import ResponseCompletedEvent, ResponsesRequest, ResponsesResponse
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMValidationError
from vllm.logprobs import append_logprobs_for_next_position
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.parser.abstract_parser import Parser
from vllm.reasoning import ReasoningParserManager
from vllm.renderers.params import ChatParams, TokenizeParams
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import EngineCoreRequest, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.detokenizer import IncrementalDetokenizer
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from engines.vllm.core_process import CoreStart

__all__ = [
    "AnthropicCountTokensResponse",
    "AnthropicMessagesResponse",
    "AnthropicServingMessages",
    "AsyncLLM",
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "CompletionRequest",
    "CompletionResponse",
    "EngineCoreRequest",
    "EngineDeadError",
    "EngineGenerateError",
    "ErrorResponse",
    "FunctionCall",
    "HookedAsyncLLM",
    "IterationStats",
    "OpenAIServingChat",
    "OpenAIServingCompletion",
    "OpenAIServingResponses",
    "Parser",
    "ReplayedRequest",
    "RequestOutput",
    "RequestOutputCollector",
    "ResponseCompletedEvent",
    "ResponsesRequest",
    "ResponsesResponse",
    "SchedulerStats",
    "StatLoggerBase",
    "SyncEngine",
    "TextReplay",
    "VLLMValidationError",
    "WrongArgument",
    "build_openai_app",
    "cache_environment",
    "default_sampling_params",
    "engine_argument_parser",
    "form_of",
    "guard_cores",
    "known_parsers",
    "name_adapter",
    "resumes_exactly",
    "tokenize_chat",
    "tokenize_text",
    "unread_output",
]

#: vLLM's executor that computes in the engine core's own process (what it names "uni").
ONE_PROCESS_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"

_FINISH_REASONS = {str(reason): reason for reason in FinishReason}
#: Text is tokenized as it is: the chat template brings the special tokens, and the
#: length is checked by the caller, with a message that names the field.
_TOKENIZE = TokenizeParams(max_total_tokens=None, add_special_tokens=False)
_TOKENIZE_RAW = TokenizeParams(max_total_tokens=None, add_special_tokens=True)


def cache_environment() -> None:
    """Let vLLM read its environment once.

    It looks into the environment for every output of every step, a third of a busy worker's
    interpreter time, and caches that in its core alone.
    """
    vllm.envs.enable_envs_cache()


async def tokenize_chat(client: EngineClient, messages: list[Any], template: str | None = None) -> list[int]:
    """Return the tokens of a conversation, through the chat template, as vLLM's own chat endpoint makes them."""
    parameters = ChatParams(chat_template=template, chat_template_kwargs={"add_generation_prompt": True})
    _, prompts = await client.renderer.render_chat_async([messages], parameters, _TOKENIZE)
    ids: list[int] = prompts[0]["prompt_token_ids"]
    return ids


async def tokenize_text(client: EngineClient, prompt: str) -> list[int]:
    """Return the tokens of a plain text, as vLLM's completion endpoint makes them."""
    prompts = await client.renderer.render_cmpl_async([{"prompt": prompt}], _TOKENIZE_RAW)
    ids: list[int] = prompts[0]["prompt_token_ids"]
    return ids


def form_of(response_format: Mapping[str, Any] | None) -> StructuredOutputsParams | None:
    """Return what OpenAI's ``response_format`` asks of the engine; None for plain text. Raises ``ValueError``."""
    match (response_format or {}).get("type", "text"):
        case "json_object":
            return StructuredOutputsParams(json_object=True)
        case "json_schema":
            assert response_format is not None
            return StructuredOutputsParams(json=response_format["json_schema"]["schema"])
    return None


def has_chat_template(client: EngineClient) -> bool:
    return bool(getattr(client.renderer.tokenizer, "chat_template", None))


def default_sampling_params(client: EngineClient) -> dict[str, Any]:
    """Return what the model's ``generation_config.json`` says of sampling, where the engine was told to heed it."""
    found = client.model_config.get_diff_sampling_param()
    return {name: value for name, value in found.items() if name != "max_tokens"}


def resumes_exactly(config: VllmConfig) -> bool:
    """Whether an engine goes on with a request as after a preemption (``engines.vllm.core_process``).

    vLLM's first model runner would have to be told in every process of a split model; its second one is.
    """
    return bool(config.use_v2_model_runner) or config.parallel_config.world_size == 1


class HookedAsyncLLM(AsyncLLM):
    """``AsyncLLM`` that shows each request before it is sent, and so before outputs come: vLLM has no place for that.

    A call for several choices is one request for each here.
    """

    #: Called with each request's collector; it may change its class.
    on_collector: Callable[[RequestOutputCollector], None] = staticmethod(lambda collector: None)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.resumes_exactly = resumes_exactly(self.vllm_config)
        register, send = self.output_processor.add_request, self.engine_core.add_request_async

        def add(
            request: EngineCoreRequest, prompt: str | None, parent: Any = None, choice: int = 0, queue: Any = None
        ) -> None:
            register(request, prompt, parent, choice, queue)
            if queue is not None:
                self.on_registered(request, choice, queue)

        async def send_changed(request: EngineCoreRequest) -> None:
            changed = self.before_sent(request)
            if changed is not None:
                await send(changed)

        self.output_processor.add_request = add
        self.engine_core.add_request_async = send_changed

    def on_registered(self, request: EngineCoreRequest, choice: int, queue: RequestOutputCollector) -> None:
        """The output processor knows a request, and nothing has come of it yet."""
        self.on_collector(queue)

    def before_sent(self, request: EngineCoreRequest) -> EngineCoreRequest | None:
        """Return what is sent to the engine for a request; None sends nothing. All choices are registered by then."""
        return request

    def unfinished_requests(self) -> int:
        """How many requests the engine has."""
        return int(self.output_processor.get_num_unfinished_requests())


def guard_cores() -> None:
    """Let every engine core that this process starts begin with :class:`CoreStart`; vLLM has no hook there."""
    if not isinstance(EngineCoreProc.run_engine_core, CoreStart):
        EngineCoreProc.run_engine_core = CoreStart(EngineCoreProc.run_engine_core)


class SyncEngine:
    """vLLM's synchronous ``LLMEngine``, whose arguments and ends are not documented."""

    def __init__(self, arguments: EngineArgs | AsyncEngineArgs, stat_loggers: list[Any]) -> None:
        self.engine = LLMEngine.from_engine_args(arguments, stat_loggers=stat_loggers)

    def abort(self, internal_id: str) -> None:
        """Abort what ``add_request`` returned the id of: the public id may be in use again."""
        self.engine.abort_request([internal_id], internal=True)

    def shutdown(self) -> None:
        """Free the engine core; ``LLMEngine`` has no method for it."""
        self.engine.engine_core.shutdown()


class TextReplay:
    """The detokenizer of an undisturbed run, made again; vLLM has none that starts in the middle of a text."""

    def __init__(
        self, client: EngineClient, prompt_ids: Sequence[int], parameters: SamplingParams, delivered: Sequence[int]
    ) -> None:
        request: Any = SimpleNamespace(
            request_id="resumed", prompt_token_ids=list(prompt_ids), prompt_embeds=None, sampling_params=parameters
        )
        self._detokenizer = IncrementalDetokenizer.from_new_request(client.renderer.tokenizer, request)
        #: Whether a stop string was found.
        self.stopped = False
        self.text(delivered, by_token=False, finished=False)

    def text(self, token_ids: Sequence[int], by_token: bool, finished: bool) -> str:
        """Return the new text of the tokens. ``by_token``: the last one ends the answer, and is no part of it."""
        found = self._detokenizer.update(list(token_ids), stop_terminated=by_token)
        self.stopped = self.stopped or found is not None
        return self._detokenizer.get_next_output_text(finished=finished or self.stopped, delta=True)


class ReplayedRequest:
    """A registered request whose first outputs are made of tokens that are known already.

    What the engine says later goes on from there: halves of characters, stop strings, offsets.
    """

    def __init__(self, client: AsyncLLM, request_id: str) -> None:
        """``request_id`` is the engine's own, of one choice."""
        self._processor = client.output_processor
        self._state = self._processor.request_states[request_id]

    @property
    def ended(self) -> bool:
        """Whether its last output was made."""
        return self._state.request_id not in self._processor.request_states

    def output(self, tokens: Sequence[int], finish_reason: str | None, stop_reason: int | str | None) -> RequestOutput:
        """Return the output that these tokens were given out with; with a reason it is the choice's last one."""
        state = self._state
        reason = None if finish_reason is None else _FINISH_REASONS[finish_reason]
        # A stop string was found in the text; all other ends are the engine's.
        stopped = reason == FinishReason.STOP and not isinstance(stop_reason, str)
        found = state.detokenizer.update(list(tokens), stopped)
        if isinstance(stop_reason, str):
            # Which one it was is not kept.
            stop_reason = found
        logprobs = state.logprobs_processor.logprobs
        if logprobs is not None:
            for token in tokens:
                # The client has the true ones: what is made of these is left out.
                append_logprobs_for_next_position(logprobs, [token], [0.0], [""], 1, 0)
        completion = state._new_completion_output(list(tokens), reason, stop_reason)
        outputs, finished = [completion], reason is not None
        if state.parent_req is not None:
            outputs, finished = state.parent_req.get_outputs(state.request_id, completion)
        output: RequestOutput = state._new_request_output(state.external_req_id, outputs, finished)
        if reason is not None:
            self._processor._finish_request(state)
        return output


def unread_output(queue: RequestOutputCollector) -> RequestOutput | None:
    """Return the output that nobody has fetched: of a request that was aborted, all that it had come to."""
    return queue.output if isinstance(queue.output, RequestOutput) else None


class WrongArgument(Exception):
    """What vLLM's parser of arguments would end the process with; it does not name the argument."""


class _RaisingParser(FlexibleArgumentParser):
    def error(self, message: str) -> NoReturn:
        # "argument --max-num-seqs: invalid int value: 'x'"
        raise WrongArgument(message.partition(": ")[2] if message.startswith("argument ") else message)


def engine_argument_parser() -> FlexibleArgumentParser:
    """Return vLLM's parser of its engine's arguments; what is wrong raises ``WrongArgument``.

    The table of its options (``_actions``) is what knows their names; argparse has no other way to ask.
    """
    return AsyncEngineArgs.add_cli_args(_RaisingParser(add_help=False))


def known_parsers() -> dict[str, list[str]]:
    """Return the names of the parsers of tool calls and of reasoning, by their keys in the model file."""
    return {
        "tool_call_parser": sorted(ToolParserManager.list_registered()),
        "reasoning_parser": sorted(ReasoningParserManager.list_registered()),
    }


async def build_openai_app(client: EngineClient, options: Mapping[str, str | None]) -> Any:
    """Return vLLM's own OpenAI-compatible ASGI application on a running engine; its server is not opened.

    ``options`` are those of ``vllm serve``, without their dashes; None is one that takes no value.
    """
    parser = make_arg_parser(FlexibleArgumentParser())
    words = [f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()]
    arguments = parser.parse_args(words)
    tasks = await client.get_supported_tasks()
    app = build_app(arguments, tasks, client.model_config)
    # Cross-origin rules and HTTP metrics belong to who listens on a port: not here, and every chunk pays for them.
    app.user_middleware.clear()
    await init_app_state(client, app.state, arguments, tasks)
    return app


def name_adapter(app: Any, name: str, adapter: LoRARequest) -> None:
    """Let the application know a loaded adapter as a model; its own endpoint would load it once more."""
    app.state.openai_serving_models.lora_requests[name] = LoRARequest(name, adapter.lora_int_id, adapter.lora_path)
