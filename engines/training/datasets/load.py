"""A data set for its trainer: read, split, long rows left out as asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.training.datasets.formats import COLUMNS, Sample, SampleReader
from engines.training.datasets.lengths import TemplateRefusal, TokenCounter
from engines.training.datasets.rows import DatasetError, Problem, at_line, read_rows, whole
from engines.training.spec import LongRows


@dataclass(frozen=True)
class Dataset:
    """A checked data set."""

    format: str
    rows: int
    #: Samples for training and for evaluation.
    train: list[Sample]
    evaluation: list[Sample]
    #: Rows longer than allowed, and what the longest has. Tokens; 0 where nothing could be counted.
    long_rows: int = 0
    longest: int = 0
    #: Rows that were left out because their answer is empty.
    empty_rows: int = 0


class LengthCheck:
    """Judges the lengths of rows, one at a time. ``counter`` None counts nothing."""

    def __init__(self, counter: TokenCounter | None, max_tokens: int, long_rows: str) -> None:
        self._counter = counter
        self._max_tokens = max_tokens
        self._policy = long_rows
        self.longest = 0
        self.too_long = 0
        #: Rows that stay.
        self.kept = 0
        self._longest_line = 0

    def keep(self, line: int, samples: Sequence[Sample]) -> bool:
        """Count a row; whether it stays. Raises ``DatasetError``."""
        if self._counter is not None:
            if isinstance(samples[-1].get("prompt"), list) and not self._counter.has_template:
                raise whole("the base model's tokenizer has no chat template: rows of messages cannot be used with it")
            # A conversation's last sample holds all of it: one count a row, linear in its length.
            try:
                length = self._counter.count(samples[-1])
            except TemplateRefusal as refusal:
                raise at_line(line, f"the base model's chat template cannot render this row: {refusal}") from refusal
            if length > self.longest:
                self.longest, self._longest_line = length, line
            if length > self._max_tokens:
                self.too_long += 1
                if self._policy == LongRows.DROP:
                    return False
        self.kept += 1
        return True

    def require_usable(self, total: int) -> None:
        """Raises ``DatasetError`` when rows are too long, or none is left."""
        if self.too_long and self._policy == LongRows.REFUSE:
            description = (
                f"{self.too_long} of {total} rows are longer than maxSeqLength ({self._max_tokens} tokens), the "
                f"longest has {self.longest}; shorten them, raise maxSeqLength, or choose longRows 'truncate' or 'drop'"
            )
            raise DatasetError([Problem(self._longest_line, "", description)])
        if not self.kept:
            raise whole(f"every row is longer than maxSeqLength ({self._max_tokens} tokens), so all would be dropped")


def load_dataset(
    path: Path,
    method: str,
    format: str,
    counter: TokenCounter | None,
    max_tokens: int,
    long_rows: str,
    eval_split: float,
) -> Dataset:
    """Read and check all of it. ``counter`` None leaves lengths unchecked. Raises ``DatasetError``."""
    reader = SampleReader(method, format)
    lengths = LengthCheck(counter, max_tokens, long_rows)
    rows = [samples for line, samples in reader.read(read_rows(path, COLUMNS)) if lengths.keep(line, samples)]
    lengths.require_usable(reader.rows)
    kept_apart = evaluation_rows(len(rows), eval_split)
    train, evaluation = (rows[:-kept_apart], rows[-kept_apart:]) if kept_apart else (rows, [])
    return Dataset(
        reader.format,
        reader.rows,
        [sample for row in train for sample in row],
        [sample for row in evaluation for sample in row],
        lengths.too_long,
        lengths.longest,
        reader.empty,
    )


def evaluation_rows(rows: int, eval_split: float) -> int:
    """Return how many rows, the last ones, are kept apart for evaluation: whole rows only, so that no conversation
    is in both parts. Raises ``DatasetError`` when a part would be empty."""
    if not eval_split:
        return 0
    kept = round(rows * eval_split)
    if kept < 1 or kept >= rows:
        part = "evaluation" if kept < 1 else "training"
        raise whole(f"evalSplit {eval_split} of {rows} rows leaves none for {part}", "hyperParams.evalSplit")
    return kept
