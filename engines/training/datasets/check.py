"""``python -m engines.training.datasets.check``: check one data set, in a process with bounds of its own.

Reads a ``CheckRequest`` as JSON on standard input, writes a ``CheckResult`` as JSON on standard
output. A process of its own, because reading and tokenizing would hold up whoever streams beside it,
and because only a process can be given so much memory and no more. Needs no torch.
"""

import json
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from child_process import die_with_parent
from engines.training.datasets.check_messages import CheckRequest, CheckResult
from engines.training.datasets.formats import COLUMNS, SampleReader
from engines.training.datasets.lengths import TokenCounter, tokenizer_folder
from engines.training.datasets.load import LengthCheck, evaluation_rows
from engines.training.datasets.rows import DatasetError, Problem, read_rows, whole


def check(request: CheckRequest) -> CheckResult:
    """Read the whole file once, row by row, keeping none."""
    path = Path(request.path)
    try:
        counter = TokenCounter(tokenizer_folder(request.model, request.download))
    except OSError:
        counter = None
    try:
        _require_size(path, request.max_bytes)
        reader = SampleReader(request.method, request.format)
        lengths = LengthCheck(counter, request.max_tokens, request.long_rows)
        for line, samples in reader.read(_bounded(read_rows(path, COLUMNS), request.max_rows)):
            lengths.keep(line, samples)
        lengths.require_usable(reader.rows)
        evaluation_rows(lengths.kept, request.eval_split)
    except DatasetError as error:
        return CheckResult(list(error.problems))
    except MemoryError:
        limit = request.max_memory // 2**20
        problem = f"it needs more memory than a check may use ({limit} MiB); split it into smaller rows, or use .jsonl"
        return CheckResult([Problem(0, "", problem)])
    return CheckResult([], reader.format, reader.rows, lengths.longest, counter is not None, reader.empty)


def _require_size(path: Path, bound: int) -> None:
    try:
        size = path.stat().st_size
    except OSError:
        raise whole("the dataset does not exist any more") from None
    if bound and size > bound:
        raise whole(f"the file has {size} bytes; at most {bound} are allowed (CY_LLM_DATASET_MAX_BYTES)")


def _bounded(rows: Iterator[tuple[int, Any]], bound: int) -> Iterator[tuple[int, Any]]:
    for number, row in enumerate(rows, 1):
        if bound and number > bound:
            raise whole(f"the dataset has more than the {bound} rows allowed (CY_LLM_DATASET_MAX_ROWS)")
        yield row


def main() -> int:
    die_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    request = CheckRequest(**json.load(sys.stdin))
    if request.max_memory:
        resource.setrlimit(resource.RLIMIT_AS, (request.max_memory, request.max_memory))
    # ASCII: a message may repeat half a character of the file.
    json.dump(asdict(check(request)), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
