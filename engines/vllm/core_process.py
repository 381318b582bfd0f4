"""What is ours in the process of an engine core: it dies with its worker, and its grammars can begin in the middle.

vLLM's engine core is a process of its own, and lives on, GPU memory and all, when its worker is killed; where that
happens while the core still starts, it waits for its worker for ever. The kernel ends it instead. This file is imported
by the worker, and first of all in the core: vLLM, which takes seconds, is imported where it is needed.
"""

import os
from collections.abc import Callable
from typing import Any

from child_process import die_with_parent

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

        continue_grammars()
        run = self.original or EngineCoreProc.run_engine_core
        run(*args, **kwargs)


def _arrive(worker: int) -> CoreStart:
    die_with_parent(parent=worker)
    return CoreStart()


def continue_grammars() -> None:
    """Let the grammar of a request that is gone on with (``engines.vllm.continuation``) begin after what was delivered.

    vLLM makes a grammar at its root, and has no place to say otherwise. The delivered tokens are the end of the prompt.
    """
    from vllm.v1.structured_output import StructuredOutputManager

    make = StructuredOutputManager._create_grammar

    def create(self: StructuredOutputManager, request: Any) -> Any:
        grammar = make(self, request)
        parameters = request.sampling_params
        count = int((parameters.extra_args or {}).get(DELIVERED_ARGUMENT, 0)) if parameters is not None else 0
        if count:
            start = _constrained_from(self, request, count)
            if start is not None:
                request.structured_output_request.reasoning_ended = True
                grammar.accept_tokens(request.request_id, request.prompt_token_ids[-count:][start:])
        return grammar

    StructuredOutputManager._create_grammar = create


def _constrained_from(manager: Any, request: Any, count: int) -> int | None:
    """Return how many of the delivered tokens were thoughts, which no grammar binds; None where all were."""
    reasoner = manager._get_reasoner(request)
    prompt = list(request.prompt_token_ids)
    if reasoner is None or manager.enable_in_reasoning or request.structured_output_request.reasoning_ended:
        return 0
    if reasoner.is_reasoning_end(prompt[:-count]):
        return 0
    for position in range(count):
        end = len(prompt) - count + position + 1
        if reasoner.is_reasoning_end_streaming(prompt[:end], prompt[end - 1 : end]):
            return position + 1
    return None
