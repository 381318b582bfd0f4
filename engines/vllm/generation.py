"""Texts and conversations of the native interface, on a running engine."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from vllm.engine.protocol import EngineClient
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from engines.errors import CannotContinue, EngineDead, EngineError, InvalidRequest
from engines.model_spec import ModelSpec
from engines.types import Chunk, GenerateRequest, Usage
from engines.vllm.core_process import mark_delivered
from engines.vllm.form_check import FormCheck
from engines.vllm.internals import (
    EngineDeadError,
    EngineGenerateError,
    VLLMValidationError,
    default_sampling_params,
    has_chat_template,
    resumes_exactly,
    tokenize_chat,
    tokenize_text,
)
from engines.vllm.resume import ResumedText
from engines.vllm.sampling import FORM, refused, sampling_params


class Generation:
    """What one engine makes of requests."""

    def __init__(self, client: EngineClient, spec: ModelSpec, template: str | None, check: FormCheck) -> None:
        """``template`` replaces the tokenizer's own."""
        self._client = client
        self._spec = spec
        self._template = template
        self._check = check
        #: The model's own values, for what a request leaves open.
        self._default_sampling = default_sampling_params(client)
        self._exactly = resumes_exactly(client.vllm_config)

    async def generate(self, request: GenerateRequest, adapter: LoRARequest | None) -> AsyncGenerator[Chunk, None]:
        """Yield the chunks of an answer. Raises ``InvalidRequest``, ``CannotContinue``, ``EngineError``."""
        try:
            prompt_ids = await self._tokenize(request)
        except VLLMValidationError as error:
            # Of the chat template: two turns of one role, say.
            raise InvalidRequest("invalid_value", "messages" if request.messages else "prompt", str(error)) from error
        limit = self._limit(request, len(prompt_ids))
        delivered_count = len(request.delivered)
        if delivered_count >= limit:
            yield Chunk("", (), "length", Usage(len(prompt_ids), delivered_count))
            return
        parameters = self._parameters(request, limit)
        usage = Usage(len(prompt_ids), delivered_count)
        resumed = ResumedText(self._client, prompt_ids, parameters, request.delivered) if delivered_count else None
        if resumed is not None and resumed.stopped:
            yield Chunk("", (), "stop", usage)
            return
        outputs = self._client.generate(
            tokens_input([*prompt_ids, *request.delivered]),
            parameters,
            request.request_id,
            lora_request=adapter,
            # vLLM serves the lowest number first.
            priority=-request.priority,
        )
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    chunk = _chunk(output, usage)
                    usage = chunk.usage
                    if chunk.finish_reason == "error":
                        raise await self._failure(request)
                    if resumed is not None:
                        chunk = resumed.next(chunk, output.outputs[0].stop_reason)
                    yield chunk
                    if chunk.finish_reason is not None:
                        return
        except VLLMValidationError as error:
            raise refused(request, error) from error
        except EngineDeadError as error:
            raise EngineDead(f"the engine of model {self._spec.id!r} stopped working") from error
        except EngineGenerateError as error:
            if self._client.errored:
                raise EngineDead(f"the engine of model {self._spec.id!r} stopped working") from error
            if request.sampling.response_format is not None:
                raise await self._failure(request) from error
            raise EngineError(f"the engine of model {self._spec.id!r} failed: {error.__cause__ or error}") from error

    async def _tokenize(self, request: GenerateRequest) -> list[int]:
        can_chat = self._template is not None or has_chat_template(self._client)
        if request.messages and not can_chat:
            description = (
                f"Model {self._spec.id!r} has no chat template: give it a 'prompt', or a template in its entry"
            )
            raise InvalidRequest("unsupported_content", "messages", description)
        if request.messages or (self._spec.prompt_format == "chat" and can_chat):
            messages = list(request.messages) or [{"role": "user", "content": request.prompt}]
            return await tokenize_chat(self._client, messages, self._template)
        return await tokenize_text(self._client, request.prompt)

    def _limit(self, request: GenerateRequest, prompt_tokens: int) -> int:
        """Return how many tokens the whole answer may have, or raise ``InvalidRequest``."""
        context = self._client.model_config.max_model_len
        room = context - prompt_tokens
        if room < 1:
            raise InvalidRequest(
                "prompt_too_long",
                "messages" if request.messages else "prompt",
                f"The prompt has {prompt_tokens} tokens; the model's context holds {context}, the answer included",
            )
        wanted = request.sampling.max_new_tokens
        if wanted is None:
            default = self._spec.default_max_tokens
            bounds = (room, None if isinstance(default, str) else default, request.answer_ceiling)
            return min(bound for bound in bounds if bound is not None)
        if wanted > room:
            raise InvalidRequest(
                "out_of_range",
                "generation.maxNewTokens",
                f"{wanted} is too large: after a prompt of {prompt_tokens} tokens "
                f"the model's context of {context} has room for {room}",
            )
        return wanted

    def _parameters(self, request: GenerateRequest, limit: int) -> SamplingParams:
        """Return the values for the engine; ``limit``: the tokens of the whole answer. Raises ``CannotContinue``."""
        delivered_count = len(request.delivered)
        if not delivered_count or self._exactly:
            parameters = sampling_params(request, self._default_sampling, limit)
            return mark_delivered(parameters, delivered_count) if delivered_count else parameters
        # To this engine they are part of the prompt: what would have to count them cannot be gone on with.
        sampling = request.sampling
        if sampling.response_format or sampling.presence_penalty or sampling.frequency_penalty:
            raise CannotContinue
        return sampling_params(request, self._default_sampling, limit - delivered_count)

    async def _failure(self, request: GenerateRequest) -> Exception:
        """Return why the engine gave an answer up: the form that was asked for, where that cannot be had."""
        fault = await self._check.judge({"response_format": request.sampling.response_format})
        if fault is None:
            return EngineError(f"the engine of model {self._spec.id!r} failed")
        return InvalidRequest("invalid_schema", FORM, f"The form that is asked for cannot be used: {fault[1]}")


def _chunk(output: RequestOutput, delivered_count: Usage) -> Chunk:
    """Map one DELTA output; ``delivered_count`` counts what came before it."""
    [completion] = output.outputs
    tokens = tuple(completion.token_ids)
    before = delivered_count
    cached = before.cached_tokens or output.num_cached_tokens or 0
    usage = Usage(before.prompt_tokens, before.completion_tokens + len(tokens), min(cached, before.prompt_tokens))
    return Chunk(completion.text, tokens, completion.finish_reason if output.finished else None, usage)
