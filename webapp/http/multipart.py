"""Forms with a file in them: the file goes to disk as it comes, the other fields are small."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, cast

from flask import request
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from services.errors import InvalidRequest
from services.files import storage_errors
from store.files.folder import IncomingFile, TooLarge
from webapp.http.body import discard
from webapp.http.body_stream import BodyStream

#: The form around the file: boundaries, names, the other fields; and what the parser may hold of the file.
_FORM_BYTES = 512 * 1024
_MAX_PARTS = 20


@dataclass(frozen=True)
class FileForm:
    """A form that has come whole. The file must be kept or discarded."""

    fields: dict[str, str]
    file: IncomingFile
    filename: str


@contextmanager
def file_form(field: str, begin: Callable[[int], IncomingFile], limit: int) -> Iterator[FileForm]:
    """Read the current call's form, with a file of up to ``limit`` bytes in ``field``.

    ``begin`` is called with the limit for each file. What was not kept at the end of the block is removed. Raises
    ``HttpError``, ``InvalidRequest``, ``StorageFailed``.
    """
    begun: list[IncomingFile] = []

    def begin_file(*_: object, **__: object) -> IO[bytes]:
        begun.append(begin(limit))
        return cast(IO[bytes], begun[-1])

    try:
        fields, files = _parse(begin_file, limit)
        found = files.get(field)
        if found is None:
            raise InvalidRequest.of("required", field, _missing(field, fields))
        # Of other files nobody speaks here.
        yield FileForm(fields, cast(IncomingFile, found.stream), found.filename or "")
    finally:
        for incoming in begun:
            incoming.discard()


def _parse(begin_file: Callable[..., IO[bytes]], limit: int) -> tuple[dict[str, str], dict[str, FileStorage]]:
    if request.mimetype != "multipart/form-data":
        discard()
        raise InvalidRequest.of("invalid_form", "", "Send a form with a file in it: multipart/form-data")
    stream = BodyStream(limit + _FORM_BYTES)
    parser = FormDataParser(
        stream_factory=begin_file,
        max_form_memory_size=_FORM_BYTES,
        max_form_parts=_MAX_PARTS,
        silent=False,
    )
    try:
        with storage_errors():
            _, form, files = parser.parse(
                cast(IO[bytes], stream), request.mimetype, request.content_length, request.mimetype_params
            )
    except TooLarge:
        discard()
        raise stream.too_large(limit) from None
    except RequestEntityTooLarge:
        discard()
        description = f"A form has at most {_MAX_PARTS} parts here, and {_FORM_BYTES} bytes beside its file"
        raise InvalidRequest.of("form_too_large", "", description) from None
    except ValueError as error:
        discard()
        raise InvalidRequest.of("invalid_form", "", f"The form is framed wrongly: {error}") from None
    return form.to_dict(), files.to_dict()


def _missing(field: str, fields: dict[str, str]) -> str:
    if field in fields:
        return f"'{field}' must be sent as a file: with a 'filename' in its part of the form"
    return f"The form needs the file in '{field}'"
