"""The files that a batch ends with."""

import json

from store.files.files import FileFacts, FileStore
from store.files.folder import IncomingFile
from store.sql.file_tables import ClientFile
from webapp.openai.batches.active import ActiveBatch

_PURPOSE = "batch_output"
#: As large as the answers are.
_NO_LIMIT = 2**50


def write(batch: ActiveBatch, files: FileStore) -> tuple[ClientFile | None, ClientFile | None]:
    """Return the output file and the error file, on disk and not yet in SQL; None for one without a line.

    Raises ``OSError``.
    """
    answers, errors = files.folder.begin(_NO_LIMIT), files.folder.begin(_NO_LIMIT)
    placed: list[ClientFile | None] = []
    try:
        for result in batch.results():
            written = json.dumps(result.document, ensure_ascii=False).encode() + b"\n"
            (answers if result.answered else errors).write(written)
        for incoming, kind in ((answers, "output"), (errors, "error")):
            placed.append(_place(batch, files, incoming, kind))
        return placed[0], placed[1]
    except BaseException:
        for file in placed:
            if file is not None:
                files.path(file).unlink(missing_ok=True)
        raise
    finally:
        # What was placed is not there any more.
        answers.discard()
        errors.discard()


def _place(batch: ActiveBatch, files: FileStore, incoming: IncomingFile, kind: str) -> ClientFile | None:
    if not incoming.bytes:
        return None
    row = batch.row
    name = f"{row.id}_{kind}.jsonl"
    return files.place(incoming, FileFacts(row.tenant, row.owner, _PURPOSE, name, ".jsonl", row.keep_seconds))
