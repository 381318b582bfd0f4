"""The one door to what vLLM 0.32 does not document. Nothing else in the project imports such a part.

Documented, and used elsewhere in this package: engine arguments, ``EngineClient``, sampling
parameters, outputs, inputs, ``LoRARequest``, ``current_platform``. All else passes here, each use with its
reason. ``tests/engine/test_vllm_internals.py`` checks what is relied on against the installed vLLM, and
names it, so that an upgrade fails there.
"""

from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensResponse, AnthropicMessagesResponse
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.generate.base.protocol import FunctionCall
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.responses.protocol import ResponseCompletedEvent, ResponsesRequest, ResponsesResponse
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.parser.abstract_parser import Parser
from vllm.v1.engine import EngineCoreRequest, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.engine.output_processor import RequestOutputCollector, RequestState
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from engines.vllm.internals.application import (
    WrongArgument,
    build_openai_app,
    engine_argument_parser,
    known_parsers,
    name_adapter,
)
from engines.vllm.internals.clients import (
    ONE_PROCESS_EXECUTOR,
    HookedAsyncLLM,
    SyncEngine,
    cache_environment,
    guard_cores,
    resumes_exactly,
)
from engines.vllm.internals.metrics import take_metrics
from engines.vllm.internals.replay import ReplayedRequest, TextReplay, unread_output
from engines.vllm.internals.tokenizing import (
    default_sampling_params,
    form_of,
    has_chat_template,
    tokenize_chat,
    tokenize_text,
)

__all__ = [
    "ONE_PROCESS_EXECUTOR",
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
    "FinishReason",
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
    "RequestState",
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
    "has_chat_template",
    "known_parsers",
    "name_adapter",
    "resumes_exactly",
    "take_metrics",
    "tokenize_chat",
    "tokenize_text",
    "unread_output",
]
