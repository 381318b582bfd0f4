"""What is ours in the process of an engine core: it dies with its worker, and its requests can begin in the middle.

vLLM's engine core is a process of its own, and lives on, GPU memory and all, when its worker is killed; where that
happens while the core still starts, it waits for its worker for ever. The kernel ends it instead. This file is imported
by the worker, and first of all in the core: vLLM, which takes seconds, is imported where it is needed.
"""

import os
from collections.abc import Callable
from typing import Any

from child_process import die_with_parent
from engines.vllm.json_blanks import bound_blanks

#: ``SamplingParams.extra_args``: how many tokens at the end of the prompt are the answer's beginning.
DELIVERED_ARGUMENT = "cy_llm_delivered"


class CoreStart:
    """The target of a core's process.

    It ties the process to its worker as soon as it arrives there (as a pickle), before anything large is imported.
    """

    def __init__(self, original: Callable[..., None] | None = None) -> None:
        """``original`` is vLLM's target, in the worker."""
        self.original = original

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return _arrive, (os.getpid(),)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        from vllm.v1.engine.core import EngineCoreProc

        from engines.vllm.cpu import allow_amx

        allow_amx()
        continue_requests()
        bound_blanks()
        run = self.original or EngineCoreProc.run_engine_core
        run(*args, **kwargs)


def _arrive(worker: int) -> CoreStart:
    die_with_parent(parent=worker)
    return CoreStart()


def forget_delivered(parameters: Any) -> None:
    """Take the mark off what a client asked for: ``vllm_xargs`` of its body become extra arguments too."""
    if parameters.extra_args and DELIVERED_ARGUMENT in parameters.extra_args:
        others = {name: value for name, value in parameters.extra_args.items() if name != DELIVERED_ARGUMENT}
        parameters.extra_args = others


def mark_delivered(parameters: Any, count: int) -> Any:
    """Return ``SamplingParams`` that say how many tokens at the end of the prompt are the answer's beginning."""
    marked = parameters.clone()
    marked.extra_args = {**(parameters.extra_args or {}), DELIVERED_ARGUMENT: count}
    return marked


def continue_requests() -> None:
    """Let a request that is gone on with (``engines.vllm.continuation``) be one that was preempted after its delivered
    tokens: they are its output, and so its limits, its penalties and its grammar count them.

    vLLM has no place to say so: a request comes with a prompt alone. The delivered tokens are the end of it.
    """
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager
    from vllm.v1.worker.gpu_input_batch import CachedRequestState

    make_request, make_grammar = Request.from_engine_core_request, StructuredOutputManager._create_grammar
    keep_request = CachedRequestState.__post_init__

    def from_engine_core_request(engine_request: Any, block_hasher: Any) -> Request:
        request = make_request(engine_request, block_hasher)
        count = _delivered(request.sampling_params)
        if 0 < count < len(request.prompt_token_ids or ()):
            request._output_token_ids.extend(request.prompt_token_ids[-count:])
            request.prompt_token_ids = request.prompt_token_ids[:-count]
            request.num_prompt_tokens -= count
            # Those of its first run were given out; more than the prompt may be cached now.
            request.prefill_stats = None
        return request

    def create_grammar(self: StructuredOutputManager, request: Any) -> Any:
        grammar = make_grammar(self, request)
        count = _delivered(request.sampling_params)
        if count:
            delivered = list(request.output_token_ids)[:count]
            # As where they came one by one: thoughts are bound by no grammar.
            start, _ = self._get_constraint_bounds(request, delivered, spec_tokens_committed=True)
            if start <= count:
                request.structured_output_request.reasoning_ended = True
                if not grammar.accept_tokens(request.request_id, delivered[start:]):
                    raise ValueError("what was delivered does not have the form that is asked for")
        return grammar

    def post_init(self: CachedRequestState) -> None:
        # vLLM's first model runner is told of new requests' prompts alone (``_tell_all_tokens``).
        count = _delivered(self.sampling_params)
        if 0 < count < len(self.prompt_token_ids or ()) and not self.output_token_ids:
            assert self.prompt_token_ids is not None
            self.output_token_ids = self.prompt_token_ids[-count:]
            self.prompt_token_ids = self.prompt_token_ids[:-count]
        keep_request(self)

    Request.from_engine_core_request = from_engine_core_request
    StructuredOutputManager._create_grammar = create_grammar
    CachedRequestState.__post_init__ = post_init
    _tell_all_tokens()


def _tell_all_tokens() -> None:
    """Let the first model runner have the delivered tokens; the second one gets all tokens beside the prompt."""
    from vllm.v1.core.sched.output import NewRequestData

    describe = NewRequestData.from_request

    def from_request(request: Any, block_ids: Any, prefill_token_ids: Any = None, **options: Any) -> NewRequestData:
        data = describe(request, block_ids, prefill_token_ids, **options)
        if prefill_token_ids is None and _delivered(request.sampling_params):
            # Nothing has come of it yet but those.
            data.prompt_token_ids = list(request.all_token_ids)
        return data

    NewRequestData.from_request = from_request


def _delivered(parameters: Any) -> int:
    """Return how many tokens of a request had been delivered when it came. ``parameters``: its ``SamplingParams``."""
    return 0 if parameters is None else int((parameters.extra_args or {}).get(DELIVERED_ARGUMENT, 0))
