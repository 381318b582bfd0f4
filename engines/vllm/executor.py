"""vLLM's one-process executor, whose engine core dies with the worker that started it.

vLLM's engine core is a process of its own, and lives on, GPU memory and all, when its worker is killed.
The kernel ends it instead. The executor is where it is set up, because it is the one thing of ours
that runs in the core. Named in the engine's arguments by its path; not imported by the worker.
"""

import multiprocessing
from typing import Any

from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.structured_output import StructuredOutputManager

from child_process import die_with_parent

#: ``SamplingParams.extra_args``: how many tokens at the end of the prompt are the answer's beginning.
DELIVERED_ARGUMENT = "cy_llm_delivered"


class GuardedUniProcExecutor(UniProcExecutor):
    """Computes in the engine core's own process."""

    def _init_executor(self) -> None:
        parent = multiprocessing.parent_process()
        # In the worker's own process (the synchronous engine may be asked so) there is nobody to die with.
        if parent is not None:
            die_with_parent(parent=parent.pid)
        continue_grammars()
        super()._init_executor()


def continue_grammars() -> None:
    """Let the grammar of a request that is gone on with (``engines.vllm.continuation``) begin after what was delivered.

    vLLM makes a grammar at its root, and has no place to say otherwise. The delivered tokens are the end of the prompt.
    """
    make = StructuredOutputManager._create_grammar
    if getattr(make, "continues", False):
        return

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

    create.continues = True  # type: ignore[attr-defined]
    StructuredOutputManager._create_grammar = create


def _constrained_from(manager: StructuredOutputManager, request: Any, count: int) -> int | None:
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
