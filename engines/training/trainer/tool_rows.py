"""Samples with tools, as tokens: a table would fill what one schema has and another has not with nulls."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from engines.training.datasets.formats import Sample

#: What the loss passes over, as torch has it.
_PASSED_OVER = -100


def have_tools(samples: Sequence[Sample]) -> bool:
    """Whether tools, or calls of them, are in any of the samples."""
    return any(
        "tools" in sample or _calls(sample.get("prompt")) or _calls(sample.get("completion")) for sample in samples
    )


def _calls(turns: Any) -> bool:
    return isinstance(turns, list) and any("tool_calls" in turn for turn in turns)


def tokenized(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Sample]:
    """Return ``input_ids`` and ``labels`` of each sample; of the prompt nothing is learnt.

    As the trainer library does it for samples without tools: the completion begins where the tokens of prompt and whole
    part.
    """
    return [_tokenized(sample, tokenizer, max_length) for sample in samples]


def _tokenized(sample: Sample, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Sample:
    def ids(turns: list[dict[str, Any]], **more: Any) -> list[int]:
        found: Any = tokenizer.apply_chat_template(
            turns, tools=sample.get("tools"), tokenize=True, return_dict=True, **more
        )
        return list(found["input_ids"])

    prompt = ids(sample["prompt"], add_generation_prompt=True)
    whole = ids([*sample["prompt"], *sample["completion"]])
    begins = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
    labels = [_PASSED_OVER] * begins + whole[begins:]
    return {"input_ids": whole[:max_length], "labels": labels[:max_length]}
