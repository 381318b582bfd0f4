"""Completions as vLLM's application serves them, with what it leaves out of OpenAI's contract put right."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from engines.vllm.call_tokens import CURRENT_CALL
from engines.vllm.chunk_template import chunks_differ_in_text, written_around
from engines.vllm.internals import CompletionRequest, CompletionResponse, OpenAIServingCompletion, RequestOutput

COMPLETIONS_PATH = "/v1/completions"


class Completions(OpenAIServingCompletion):
    """vLLM's own, but for ``max_tokens: 0``: the token that it makes to score a prompt is not told, nor counted; and
    plain chunks' cost."""

    def completion_stream_generator(
        self,
        request: CompletionRequest,
        engine_inputs: Any,
        result_generator: AsyncIterator[tuple[int, RequestOutput]],
        *args: Any,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        """As vLLM's own."""

        async def without_new() -> AsyncIterator[tuple[int, RequestOutput]]:
            async for index, output in result_generator:
                _leave_out_new(output)
                yield index, output

        def write(outputs: AsyncIterator[tuple[int, RequestOutput]]) -> AsyncGenerator[str, None]:
            return super(Completions, self).completion_stream_generator(
                request, engine_inputs, outputs, *args, **kwargs
            )

        if request.max_tokens == 0:
            return write(without_new())
        if len(engine_inputs) == 1 and request.logprobs is None and chunks_differ_in_text(self, request):
            return written_around("text", result_generator, write, lambda result: result[1].outputs[0])
        return write(result_generator)

    def request_output_to_completion_response(
        self, final_res_batch: list[RequestOutput], request: CompletionRequest, *args: Any, **kwargs: Any
    ) -> CompletionResponse:
        """As vLLM's own."""
        if request.max_tokens == 0:
            for output in final_res_batch:
                _leave_out_new(output)
        return super().request_output_to_completion_response(final_res_batch, request, *args, **kwargs)


def _leave_out_new(output: RequestOutput) -> None:
    call = CURRENT_CALL.get()
    for completion in output.outputs:
        if call is not None:
            call.uncount(len(completion.token_ids))
        completion.token_ids = []
        if completion.finish_reason == "stop":
            completion.finish_reason, completion.stop_reason = "length", None


def use_completions(app: Any) -> None:
    """Let an application of vLLM serve completions so."""
    serving = getattr(app.state, "openai_serving_completion", None)
    if serving is not None:
        serving.__class__ = Completions
