"""Rows of a dataset file, each with the line it stands on."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE_TYPES = (".json", ".jsonl", ".csv", ".parquet")
#: Problems that one answer names; the rest are counted.
MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Problem:
    """What is wrong with a dataset. ``line`` is 0 where it is the whole of it."""

    line: int
    field: str
    description: str


class DatasetError(Exception):
    """A dataset that cannot be trained on."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"line {p.line}: {p.description}" if p.line else p.description for p in problems))
        self.problems = tuple(problems)


def whole(description: str, field: str = "") -> DatasetError:
    """A problem of the dataset as a whole."""
    return DatasetError([Problem(0, field, description)])


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield ``(line, row)``; lines count from 1, and are row numbers in a Parquet file.

    Raises ``DatasetError`` for a file that cannot be parsed, naming the line.
    """
    readers = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise whole(f"a dataset is a {', '.join(FILE_TYPES)} file, not {path.suffix or 'one without a suffix'!r}")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise whole(f"the file is not UTF-8 text (byte {error.start})") from error
    except FileNotFoundError:
        raise whole("the dataset does not exist any more") from None
    except OSError as error:
        raise whole(f"the file cannot be read: {error.strerror or error}") from error


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                yield line, json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DatasetError([Problem(line, "", f"this line is not JSON: {error}")]) from error


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """One array of rows; elements are decoded one by one, so that each has its line."""
    text = path.read_text(encoding="utf-8-sig")
    decoder = json.JSONDecoder()
    at, line = _skip(text, 0, 1)
    if text[at : at + 1] != "[":
        raise DatasetError([Problem(line, "", "the file must be a JSON array of rows (one object a line is .jsonl)")])
    at, line = _skip(text, at + 1, line)
    while text[at : at + 1] != "]":
        try:
            row, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise DatasetError([Problem(line, "", f"not valid JSON from here on: {error}")]) from error
        yield line, row
        at, line = _skip(text, end, line + text.count("\n", at, end))
        if text[at : at + 1] == ",":
            at, line = _skip(text, at + 1, line)
        elif text[at : at + 1] != "]":
            raise DatasetError([Problem(line, "", "a ',' or the closing ']' is missing here")])


def _skip(text: str, at: int, line: int) -> tuple[int, int]:
    """Skip white space; return the new position and its line."""
    while at < len(text) and text[at] in " \t\r\n":
        line += text[at] == "\n"
        at += 1
    return at, line


def _read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    # A field may be as long as a text is.
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DatasetError([Problem(line, "", f"not valid CSV: {error}")]) from error
            if None in row:
                raise DatasetError([Problem(line, "", "this line has more fields than the header")])
            yield line, {name: value for name, value in row.items() if value is not None}


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: value for name, value in row.items() if value is not None}
    except pyarrow.ArrowException as error:
        raise whole(f"not a Parquet file: {error}") from error
