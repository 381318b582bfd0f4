"""Rows of a dataset file, each with the line it stands on."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text import NotText, is_whole, quote, require_whole_characters

FILE_TYPES = (".json", ".jsonl", ".csv", ".parquet")
#: Problems that one answer names; the rest are counted.
MAX_PROBLEMS = 20
_BOM = "\ufeff"
#: What separates columns where it is no comma: German and French spreadsheets, tabs, databases.
_SEPARATORS = (";", "\t", "|")


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


def at_line(line: int, description: str, field: str = "") -> DatasetError:
    """A problem of one line."""
    return DatasetError([Problem(line, field, description)])


def read_rows(path: Path, known_columns: Sequence[str] = ()) -> Iterator[tuple[int, Any]]:
    """Yield ``(line, row)``; lines count from 1, and are row numbers in a Parquet file.

    ``known_columns`` are names that a CSV's header is put right to: spreadsheets write capitals and blanks.
    Raises ``DatasetError`` for a file that cannot be parsed, naming the line.
    """
    kind = path.suffix.lower()
    if kind not in FILE_TYPES:
        raise whole(f"a dataset is a {', '.join(FILE_TYPES)} file, not {path.suffix or 'one without a suffix'!r}")
    try:
        if kind == ".csv":
            yield from _read_csv(path, known_columns)
        elif kind == ".parquet":
            yield from _read_parquet(path)
        else:
            yield from _read_json(path) if kind == ".json" else _read_jsonl(path)
    except UnicodeDecodeError as error:
        raise whole(f"the file is not UTF-8 text (byte {error.start}){_encoding_hint(path)}") from error
    except FileNotFoundError:
        raise whole("the dataset does not exist any more") from None
    except OSError as error:
        raise whole(f"the file cannot be read: {error.strerror or error}") from error


def _encoding_hint(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    if head[:2] == b"\x1f\x8b":
        return "; it is packed with gzip: unpack it"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
        return "; it looks like UTF-16: save it as UTF-8"
    if head[:2] == b"PK":
        return "; it is a zip archive, or a spreadsheet: save that as CSV in UTF-8"
    return "; it may be in a code page of Windows (GBK, Latin-1): save it as UTF-8"


def _parse(text: str, line: int) -> Any:
    try:
        row = json.loads(text)
        require_whole_characters(text, row)
    except NotText as error:
        raise at_line(line, str(error), error.field) from error
    except (ValueError, RecursionError) as error:
        raise at_line(line, f"this line is not JSON: {_json_words(error)}{_json_hint(text)}") from error
    return row


def _json_words(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _json_hint(text: str) -> str:
    if text.strip() == "{":
        return "; the objects are spread over several lines: .jsonl has one object a line, .json one array of them"
    return "; quotes are double in JSON" if text.lstrip().startswith("{'") else ""


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    # Lines end with \n or \r\n and nothing else: U+2028 inside a text is no line end.
    first = True
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line, text in enumerate(file, 1):
            # Files that were joined with ``cat`` have a mark in the middle.
            stripped = text.strip(" \t\r\n" + _BOM)
            if first and stripped.startswith("["):
                # One JSON array, which many tools write into files of this name.
                break
            if stripped:
                first = False
                yield line, _parse(stripped, line)
        else:
            return
    yield from _read_json(path)


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """One array of rows; elements are decoded one by one, so that each has its line."""
    text = path.read_text(encoding="utf-8-sig")
    decoder = json.JSONDecoder()
    at, line = _skip(text, 0, 1)
    if text[at : at + 1] != "[":
        raise at_line(line, f"the file must be a JSON array of rows (one object a line is .jsonl){_object_hint(text)}")
    at, line = _skip(text, at + 1, line)
    while text[at : at + 1] != "]":
        try:
            row, end = decoder.raw_decode(text, at)
            require_whole_characters(text[at:end], row)
        except NotText as error:
            raise at_line(line, str(error), error.field) from error
        except (ValueError, RecursionError) as error:
            raise at_line(line, f"not valid JSON from here on: {_json_words(error)}") from error
        yield line, row
        at, line = _skip(text, end, line + text.count("\n", at, end))
        if text[at : at + 1] == ",":
            at, line = _skip(text, at + 1, line)
            if text[at : at + 1] == "]":
                raise at_line(line, "a ',' stands before the closing ']'")
        elif text[at : at + 1] != "]":
            raise at_line(line, "a ',' or the closing ']' is missing here")
    end, line = _skip(text, at + 1, line)
    if end < len(text):
        raise at_line(line, "there is more behind the closing ']': were two files joined?")


def _object_hint(text: str) -> str:
    """Name the array inside an object, which some exports wrap their rows in."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    arrays = [str(name) for name, value in document.items() if isinstance(value, list)]
    return f"; it is an object: save what stands under {quote(arrays[0])}" if arrays else ""


def _skip(text: str, at: int, line: int) -> tuple[int, int]:
    """Skip white space and marks; return the new position and its line."""
    while at < len(text) and text[at] in " \t\r\n" + _BOM:
        line += text[at] == "\n"
        at += 1
    return at, line


def _read_csv(path: Path, known_columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    # A field may be as long as a text is.
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] = []
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise at_line(line, f"not valid CSV: {error}") from error
            if not any(value.strip() for value in values):
                # Spreadsheets leave empty lines, some with all their commas.
                continue
            if not header:
                header = _header(values, line, known_columns)
                continue
            if len(values) > len(header):
                if any(value.strip() for value in values[len(header) :]):
                    raise at_line(line, "this line has more fields than the header")
                values = values[: len(header)]
            yield line, dict(zip(header, values, strict=False))


def _header(names: list[str], line: int, known_columns: Sequence[str]) -> list[str]:
    by_folded = {name.lower(): name for name in known_columns}
    found = [by_folded.get(name.strip(" \t" + _BOM).lower(), name.strip(" \t" + _BOM)) for name in names]
    if len(found) == 1:
        for separator in _SEPARATORS:
            if separator in found[0]:
                shown = "a tab" if separator == "\t" else f"'{separator}'"
                raise at_line(line, f"are the columns separated by {shown}? Save the file with commas between them")
    named = [name for name in found if name]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise at_line(line, f"the header names the column {quote(twice)} twice")
    return found


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    number += 1
                    yield number, without_nulls(row)
    except pyarrow.ArrowException as error:
        raise whole(f"not a Parquet file: {error}") from error
    except UnicodeDecodeError as error:
        raise at_line(number + 1, "a text in this row or behind it is not UTF-8") from error


def without_nulls(value: Any) -> Any:
    """Leave out what is null: in columns, a field that one row has is null in all others."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def require_text(value: str, field: str) -> str:
    """Return text that every later step can write. Raises ``NotText``."""
    if not is_whole(value):
        raise NotText("holds half a character (a lone surrogate)", field)
    return value
