"""Everything that can be known of a dataset before a GPU is touched."""

from dataclasses import dataclass
from pathlib import Path

from engines.training.lengths import TokenCounter
from engines.training.rows import DatasetError, Problem, read_rows, whole
from engines.training.shapes import Sample, to_samples
from engines.training.spec import LongRows


@dataclass(frozen=True)
class Dataset:
    """A checked dataset."""

    shape: str
    rows: int
    #: Samples for training and for evaluation.
    train: list[Sample]
    evaluation: list[Sample]
    #: Rows longer than allowed, and what the longest has. Tokens; 0 where nothing could be counted.
    long_rows: int = 0
    longest: int = 0


def load_dataset(
    path: Path,
    method: str,
    shape: str,
    counter: TokenCounter | None,
    max_tokens: int,
    long_rows: str,
    eval_split: float,
) -> Dataset:
    """Read and check all of it. ``counter`` None leaves lengths unchecked. Raises ``DatasetError``."""
    shape, rows = to_samples(read_rows(path), method, shape)
    total = len(rows)
    too_long: list[tuple[int, int]] = []
    longest = 0
    if counter is not None:
        if not counter.has_template and any(isinstance(sample.get("prompt"), list) for sample in rows[0][1]):
            raise whole("the base model's tokenizer has no chat template: rows of messages cannot be used with it")
        lengths = [(line, max(counter.count(sample) for sample in samples)) for line, samples in rows]
        longest = max(length for _, length in lengths)
        too_long = [(line, length) for line, length in lengths if length > max_tokens]
    if too_long and long_rows == LongRows.REFUSE:
        raise _too_long(too_long, total, max_tokens)
    if too_long and long_rows == LongRows.DROP:
        dropped = {line for line, _ in too_long}
        rows = [(line, samples) for line, samples in rows if line not in dropped]
        if not rows:
            raise whole(f"every row is longer than maxSeqLength ({max_tokens} tokens), so all would be dropped")
    train, evaluation = _split([samples for _, samples in rows], eval_split)
    return Dataset(shape, total, train, evaluation, len(too_long), longest)


def _too_long(rows: list[tuple[int, int]], total: int, max_tokens: int) -> DatasetError:
    line, length = max(rows, key=lambda row: row[1])
    description = (
        f"{len(rows)} of {total} rows are longer than maxSeqLength ({max_tokens} tokens), the longest has {length}; "
        "shorten them, raise maxSeqLength, or choose longRows 'truncate' or 'drop'"
    )
    return DatasetError([Problem(line, "", description)])


def _split(rows: list[list[Sample]], eval_split: float) -> tuple[list[Sample], list[Sample]]:
    """Keep the last rows apart, whole rows only, so that no conversation is in both parts."""
    if not eval_split:
        return [sample for row in rows for sample in row], []
    kept = round(len(rows) * eval_split)
    if kept < 1 or kept >= len(rows):
        part = "evaluation" if kept < 1 else "training"
        raise whole(f"evalSplit {eval_split} of {len(rows)} rows leaves none for {part}", "hyperParams.evalSplit")
    train, evaluation = rows[:-kept], rows[-kept:]
    return [sample for row in train for sample in row], [sample for row in evaluation for sample in row]
