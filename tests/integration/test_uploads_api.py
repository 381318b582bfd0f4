"""``/v1/uploads``: files that come in parts."""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import openai
import pytest
from sqlalchemy import update

from store.files.files import FileStore
from store.files.uploads import UploadStore
from store.sql import db
from store.sql.file_tables import Upload
from store.sql.tables import now
from testing.stack import Stack
from tests.integration.client_files import on_disk


def test_an_upload_in_parts(fake_stack: Stack, sdk: openai.OpenAI, empty: None) -> None:
    data = os.urandom(100_000)
    upload = sdk.uploads.create(filename="x/big.jsonl", purpose="batch", bytes=len(data), mime_type="text/jsonl")
    assert (upload.status, upload.bytes, upload.filename, upload.file) == ("pending", len(data), "big.jsonl", None)
    assert upload.expires_at - upload.created_at == 3600
    second = sdk.uploads.parts.create(upload.id, data=data[60_000:])
    first = sdk.uploads.parts.create(upload.id, data=data[:60_000])
    # Sent twice, and left out.
    sdk.uploads.parts.create(upload.id, data=data[:60_000])
    assert (first.object, first.upload_id) == ("upload.part", upload.id)
    done = sdk.uploads.complete(
        upload.id, part_ids=[first.id, second.id], md5=hashlib.md5(data, usedforsecurity=False).hexdigest()
    )
    assert done.status == "completed" and done.file is not None
    assert sdk.files.content(done.file.id).content == data
    assert sdk.files.retrieve(done.file.id) == done.file
    # The answer was lost: the same once more.
    assert sdk.uploads.complete(upload.id, part_ids=[first.id, second.id]).file == done.file
    assert len(on_disk(fake_stack)) == 1


def test_the_sdk_s_own_chunked_upload(sdk: openai.OpenAI, empty: None) -> None:
    data = os.urandom(50_000)
    done = sdk.uploads.upload_file_chunked(
        file=io.BytesIO(data).getvalue(),
        filename="c.jsonl",
        bytes=len(data),
        mime_type="text/jsonl",
        purpose="fine-tune",
        part_size=20_000,
    )
    assert done.file is not None
    assert sdk.files.content(done.file.id).content == data


def test_uploads_that_go_wrong(fake_stack: Stack, sdk: openai.OpenAI, stranger: openai.OpenAI, empty: None) -> None:
    upload = sdk.uploads.create(filename="a.jsonl", purpose="batch", bytes=10, mime_type="x")
    part = sdk.uploads.parts.create(upload.id, data=b"12345")
    for ids, md5, param in (
        ([part.id], "", "part_ids"),
        ([part.id, part.id], "", "part_ids"),
        (["part_000000000000000000000000"], "", "part_ids"),
        (["x"], "", "part_ids.0"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            sdk.uploads.complete(upload.id, part_ids=ids, md5=md5)
        assert refused.value.param == param
    rest = sdk.uploads.parts.create(upload.id, data=b"67890")
    with pytest.raises(openai.BadRequestError) as wrong:
        sdk.uploads.complete(upload.id, part_ids=[part.id, rest.id], md5="0" * 32)
    assert wrong.value.param == "md5"
    with pytest.raises(openai.NotFoundError):
        stranger.uploads.parts.create(upload.id, data=b"1")
    with pytest.raises(openai.NotFoundError):
        stranger.uploads.complete(upload.id, part_ids=[part.id])
    with pytest.raises(openai.BadRequestError):
        sdk.uploads.parts.create(upload.id, data=b"")
    # After all that it can be completed still.
    assert sdk.uploads.cancel(upload.id).status == "cancelled"
    assert on_disk(fake_stack) == []
    for late in (
        lambda: sdk.uploads.parts.create(upload.id, data=b"1"),
        lambda: sdk.uploads.complete(upload.id, part_ids=[part.id, rest.id]),
    ):
        with pytest.raises(openai.ConflictError) as conflict:
            late()
        # The SDK would send it twice more.
        assert conflict.value.response.headers["x-should-retry"] == "false"
    assert sdk.uploads.cancel(upload.id).status == "cancelled"
    for values, param in (
        ({"bytes": 10**12}, "bytes"),
        ({"filename": "a" * 300}, "filename"),
        ({"bytes": 0}, "bytes"),
        ({"purpose": "x"}, "purpose"),
    ):
        given: Any = {"filename": "a.jsonl", "purpose": "batch", "bytes": 5, "mime_type": "x", **values}
        with pytest.raises(openai.BadRequestError) as refused:
            sdk.uploads.create(**given)
        assert refused.value.param == param


def test_parts_have_bounds(fake_stack: Stack, sdk: openai.OpenAI, empty: None) -> None:
    upload = sdk.uploads.create(filename="a.jsonl", purpose="batch", bytes=100, mime_type="x")
    with pytest.raises(openai.APIStatusError) as large:
        sdk.uploads.parts.create(upload.id, data=b"x" * 101)
    assert large.value.status_code == 413
    for _ in range(2):
        sdk.uploads.parts.create(upload.id, data=b"x" * 100)
    with pytest.raises(openai.BadRequestError, match="100 bytes"):
        sdk.uploads.parts.create(upload.id, data=b"x")
    sdk.uploads.cancel(upload.id)
    assert on_disk(fake_stack) == []


def test_what_is_left_of_an_upload_goes(fake_stack: Stack, sdk: openai.OpenAI, empty: None) -> None:
    """A process that was killed between the state and the folder."""
    upload = sdk.uploads.create(filename="a.jsonl", purpose="batch", bytes=5, mime_type="x")
    sdk.uploads.parts.create(upload.id, data=b"12345")
    sessions = db.sessions(db.connect(fake_stack.database_url))
    with sessions.begin() as session:
        session.execute(update(Upload).where(Upload.id == upload.id).values(status="cancelled"))
    store = UploadStore(sessions, FileStore(sessions, fake_stack.folder / "files"))
    store.expire()
    assert on_disk(fake_stack) == []
    with sessions.begin() as session:
        session.execute(update(Upload).values(expires_at=now() - timedelta(days=2)))
    store.expire()
    with sessions() as session:
        assert session.query(Upload).count() == 0


def test_two_complete_at_once(fake_stack: Stack, sdk: openai.OpenAI, empty: None) -> None:
    data = os.urandom(3_000_000)
    upload = sdk.uploads.create(filename="a.jsonl", purpose="batch", bytes=len(data), mime_type="x")
    part = sdk.uploads.parts.create(upload.id, data=data)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: sdk.uploads.complete(upload.id, part_ids=[part.id]), range(4)))
    assert len({each.file.id for each in done if each.file}) == 1
    assert len(on_disk(fake_stack)) == 1


def test_an_upload_that_is_late_expires(fake_stack: Stack, sdk: openai.OpenAI, empty: None) -> None:
    upload = sdk.uploads.create(filename="a.jsonl", purpose="batch", bytes=5, mime_type="x")
    part = sdk.uploads.parts.create(upload.id, data=b"12345")
    sessions = db.sessions(db.connect(fake_stack.database_url))
    with sessions.begin() as session:
        session.execute(update(Upload).where(Upload.id == upload.id).values(expires_at=now() - timedelta(seconds=1)))
    with pytest.raises(openai.ConflictError):
        sdk.uploads.complete(upload.id, part_ids=[part.id])
    store = UploadStore(sessions, FileStore(sessions, fake_stack.folder / "files"))
    assert store.expire() == 1
    assert on_disk(fake_stack) == []
    assert store.expire() == 0
