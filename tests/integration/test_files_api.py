"""``/v1/files``, by OpenAI's own client and by hand."""

import gzip
import os
import signal
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import update

from store.files.files import FileStore
from store.sql import db
from store.sql.file_tables import ClientFile
from store.sql.tables import now
from testing.stack import KEY, Stack
from testing.waiting import until
from tests.integration.client_files import on_disk

LINES = b'{"a": 1}\n'


@pytest.fixture
def http(fake_stack: Stack) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=fake_stack.openai_base, headers=headers, trust_env=False, timeout=60) as opened:
        yield opened


def error_of(response: httpx.Response) -> tuple[int, str | None, str | None]:
    error = response.json()["error"]
    return response.status_code, error["param"], error["code"]


def test_a_file_s_life(fake_stack: Stack, sdk: openai.OpenAI, empty: None) -> None:
    # Bytes that every decoder would change: a BOM, NUL, both line breaks, and a gzip head.
    data = b"\xef\xbb\xbf\0\r\n\n" + gzip.compress(os.urandom(300_000)) + b"\xff"
    made = sdk.files.create(file=("data.jsonl", data), purpose="batch")
    assert (made.object, made.bytes, made.filename, made.purpose) == ("file", len(data), "data.jsonl", "batch")
    assert made.status == "processed" and made.expires_at is not None
    assert made.expires_at - made.created_at == 30 * 86_400
    assert sdk.files.retrieve(made.id) == made
    assert sdk.files.wait_for_processing(made.id).id == made.id
    content = sdk.files.content(made.id)
    assert content.content == data
    assert content.response.headers["content-type"] == "application/octet-stream"
    assert [file.id for file in sdk.files.list()] == [made.id]
    deleted = sdk.files.delete(made.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "file", True)
    for gone in (sdk.files.retrieve, sdk.files.content, sdk.files.delete):
        with pytest.raises(openai.NotFoundError) as raised:
            gone(made.id)
        assert made.id in str(raised.value)
    assert on_disk(fake_stack) == []


def test_kept_as_long_as_the_client_says(sdk: openai.OpenAI) -> None:
    expiry: Any = {"anchor": "created_at", "seconds": 7200}
    made = sdk.files.create(file=("a.jsonl", LINES), purpose="fine-tune", expires_after=expiry)
    assert made.expires_at == made.created_at + 7200
    forever = sdk.files.create(file=("a.jsonl", LINES), purpose="fine-tune")
    assert forever.expires_at is None


def test_expired_is_gone_and_is_swept(fake_stack: Stack, sdk: openai.OpenAI, empty: None) -> None:
    made = sdk.files.create(file=("a.jsonl", LINES), purpose="user_data")
    sessions = db.sessions(db.connect(fake_stack.database_url))
    with sessions.begin() as session:
        session.execute(update(ClientFile).values(expires_at=now() - timedelta(seconds=1)))
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(made.id)
    assert list(sdk.files.list()) == []
    assert FileStore(sessions, fake_stack.folder / "files").purge() == 1
    assert on_disk(fake_stack) == []


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../x.jsonl", "x.jsonl"),
        ("C:\\Users\\me\\x.jsonl", "x.jsonl"),
        ("日本 é.jsonl", "日本 é.jsonl"),
        ("-", "-"),
        ("a b#?%2F.jsonl", "a b#?%2F.jsonl"),
        ('"><i>.csv', '"><i>.csv'),
    ],
)
def test_names_are_shown_and_open_no_folder(
    fake_stack: Stack, sdk: openai.OpenAI, empty: None, sent: str, shown: str
) -> None:
    made = sdk.files.create(file=(sent, LINES), purpose="batch")
    assert made.filename == shown
    root = (fake_stack.folder / "files" / "files").resolve()
    assert [path.resolve().parent for path in on_disk(fake_stack)] == [root]
    assert sdk.files.content(made.id).content == LINES


def form(*parts: tuple[str, str | None, bytes]) -> tuple[bytes, dict[str, str]]:
    """A form by hand: name, filename, data."""
    body = b""
    for name, filename, data in parts:
        named = "" if filename is None else f'; filename="{filename}"'
        body += f'--xx\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + data + b"\r\n"
    return body + b"--xx--\r\n", {"Content-Type": "multipart/form-data; boundary=xx"}


FILE = ("file", "d.jsonl", LINES)
PURPOSE = ("purpose", None, b"batch")
ANCHOR = ("expires_after[anchor]", None, b"created_at")


@pytest.mark.parametrize(
    ("parts", "query", "wanted"),
    [
        ([FILE, PURPOSE], "", None),
        ([PURPOSE, FILE], "", None),
        ([FILE], "?purpose=batch", None),
        ([PURPOSE, ("file", None, b"text")], "", (400, "file", "required")),
        ([PURPOSE], "", (400, "file", "required")),
        ([FILE], "", (400, "purpose", "required")),
        ([FILE, ("purpose", None, b"nope")], "", (400, "purpose", "invalid_value")),
        ([PURPOSE, ("file", "z.jsonl", b"")], "", (400, "file", "empty_file")),
        (
            [PURPOSE, FILE, ANCHOR, ("expires_after[seconds]", None, b"10")],
            "",
            (400, "expires_after.seconds", "invalid_value"),
        ),
        ([PURPOSE, FILE, ANCHOR], "", (400, "expires_after.seconds", "required")),
        ([PURPOSE, ("file", "a" * 300, LINES)], "", (400, "file", "invalid_value")),
        ([PURPOSE, FILE, *[(f"x{n}", None, b"1") for n in range(30)]], "", (400, None, "form_too_large")),
    ],
)
def test_forms(
    fake_stack: Stack,
    http: httpx.Client,
    empty: None,
    parts: list[tuple[str, str | None, bytes]],
    query: str,
    wanted: tuple[int, str | None, str] | None,
) -> None:
    body, headers = form(*parts)
    response = http.post(f"/files{query}", content=body, headers=headers)
    if wanted is None:
        assert response.status_code == 200, response.text
        return
    assert error_of(response) == wanted
    assert response.json()["error"]["type"] == "invalid_request_error"
    # What was refused is not kept.
    assert on_disk(fake_stack) == []


def test_what_is_no_form(fake_stack: Stack, http: httpx.Client, empty: None) -> None:
    assert error_of(http.post("/files", json={})) == (400, None, "invalid_form")
    body, headers = form(PURPOSE, FILE)
    assert error_of(http.post("/files", content=body[:-9], headers=headers))[0] == 400
    packed = {**headers, "Content-Encoding": "gzip"}
    assert error_of(http.post("/files", content=gzip.compress(body), headers=packed))[0] == 415
    # The connection is still of use: what was refused was read to its end.
    assert http.get("/files").json()["data"] == []
    assert on_disk(fake_stack) == []


def test_pages_in_both_orders(sdk: openai.OpenAI, empty: None) -> None:
    made = [sdk.files.create(file=(f"{n}.jsonl", LINES), purpose="user_data").id for n in range(5)]
    other = sdk.files.create(file=("o.jsonl", LINES), purpose="vision").id
    first = sdk.files.list(limit=2)
    assert [file.id for file in first.data] == [other, made[4]] and first.has_more
    assert [file.id for file in sdk.files.list(limit=1)] == [other, *reversed(made)]
    assert [file.id for file in sdk.files.list(limit=2, order="asc")] == [*made, other]
    assert [file.id for file in sdk.files.list(purpose="vision")] == [other]
    whole = sdk.files.list(limit=6)
    assert len(whole.data) == 6 and not whole.has_more


def test_deleting_while_paging_meets_each_once(sdk: openai.OpenAI, empty: None) -> None:
    made = {sdk.files.create(file=(f"{n}.jsonl", LINES), purpose="user_data").id for n in range(7)}
    met = []
    for file in sdk.files.list(limit=2):
        sdk.files.delete(file.id)
        met.append(file.id)
    assert sorted(met) == sorted(made)


@pytest.mark.parametrize("data", [b"\n" + b"x" * 3_000_000, b"\r\n--" * 400_000, b"\0" * 2_000_000 + b"\r"])
def test_bytes_that_look_like_a_form_s_end(sdk: openai.OpenAI, empty: None, data: bytes) -> None:
    made = sdk.files.create(file=("a.bin", data), purpose="user_data")
    assert sdk.files.content(made.id).content == data


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("order=up", "order"),
        ("after=x", "after"),
        ("purpose=p", "purpose"),
    ],
)
def test_queries(http: httpx.Client, query: str, param: str) -> None:
    assert error_of(http.get(f"/files?{query}"))[:2] == (400, param)


def test_another_tenant_sees_nothing(sdk: openai.OpenAI, stranger: openai.OpenAI, empty: None) -> None:
    made = sdk.files.create(file=("a.jsonl", LINES), purpose="batch")
    for call in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    assert list(stranger.files.list()) == []
    theirs = stranger.files.create(file=("b.jsonl", LINES), purpose="batch")
    # An operator's key sees everybody's.
    assert {file.id for file in sdk.files.list()} == {made.id, theirs.id}
    stranger.files.delete(theirs.id)


@pytest.fixture
def narrow(own_stack: Stack) -> Stack:
    """A front door with little room."""
    limits = {"CY_LLM_MAX_FILE_BYTES": "200000", "CY_LLM_MAX_FILES": "3", "CY_LLM_MAX_STORED_BYTES": "300000"}
    own_stack.start_web(**limits)
    return own_stack


def test_bounds(narrow: Stack) -> None:
    with narrow.openai() as sdk:
        with pytest.raises(openai.APIStatusError) as raised:
            sdk.files.create(file=("a.jsonl", b"x" * 200_001), purpose="batch")
        assert raised.value.status_code == 413 and "200000 bytes" in str(raised.value)
        sdk.files.create(file=("a.jsonl", b"x" * 200_000), purpose="batch")
        with pytest.raises(openai.BadRequestError, match="300000 allowed") as full:
            sdk.files.create(file=("b.jsonl", b"x" * 200_000), purpose="batch")
        assert full.value.code == "storage_full"
        for _ in range(2):
            sdk.files.create(file=("b.jsonl", b"x" * 100), purpose="batch")
        with pytest.raises(openai.BadRequestError, match="delete some") as many:
            sdk.files.create(file=("b.jsonl", b"x"), purpose="batch")
        assert many.value.code == "too_many_files"
        assert len(on_disk(narrow)) == 3


def test_a_body_that_hides_its_size_is_bounded_too(narrow: Stack) -> None:
    body, headers = form(PURPOSE, ("file", "a.jsonl", b"x" * 250_000))

    def parts() -> Iterator[bytes]:
        for at in range(0, len(body), 10_000):
            yield body[at : at + 10_000]

    headers = {**headers, "Authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{narrow.openai_base}/files", content=parts(), headers=headers, trust_env=False, timeout=60)
    assert error_of(answer) == (413, "file", "file_too_large")
    assert on_disk(narrow) == []


def test_a_half_upload_leaves_nothing(fake_stack: Stack, sdk: openai.OpenAI, empty: None) -> None:
    body, headers = form(PURPOSE, ("file", "a.jsonl", b"x" * 1_000_000))
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = [
        "POST /v1/files HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {KEY}",
        f"Content-Length: {len(body)}",
        *lines,
    ]
    with socket.create_connection(("127.0.0.1", fake_stack.openai_port)) as connection:
        connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body[:500_000])
        until(lambda: on_disk(fake_stack), 10, "the file is being written")
    until(lambda: not on_disk(fake_stack), 10, "what came is removed")
    assert list(sdk.files.list()) == []


def test_a_front_door_that_is_killed_leaves_nothing(own_stack: Stack) -> None:
    web = own_stack.start_web()
    body, headers = form(PURPOSE, ("file", "a.jsonl", b"x" * 1_000_000))
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = [
        "POST /v1/files HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {KEY}",
        f"Content-Length: {len(body)}",
        *lines,
    ]
    with socket.create_connection(("127.0.0.1", own_stack.openai_port)) as connection:
        connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body[:500_000])
        [left] = until(lambda: on_disk(own_stack), 10, "the file is being written")
        os.killpg(web.pid, signal.SIGKILL)
        web.wait(10)
    store = FileStore(db.sessions(db.connect(own_stack.database_url)), own_stack.folder / "files")
    store.purge()
    # It may still be written, for all that is known.
    assert left.exists()
    os.utime(left, (0, 0))
    store.purge()
    assert on_disk(own_stack) == []


def test_an_orphan_is_swept_and_no_other(fake_stack: Stack, sdk: openai.OpenAI, empty: None) -> None:
    made = sdk.files.create(file=("a.csv", LINES), purpose="fine-tune")
    [kept] = on_disk(fake_stack)
    orphan = kept.with_name("file-00000000000000000000abcd.jsonl")
    orphan.write_bytes(LINES)
    for path in (kept, orphan):
        os.utime(path, (0, 0))
    # What others keep there is theirs.
    snapshot = kept.parent / ".snapshot"
    snapshot.mkdir()
    notes = kept.with_name("notes.txt")
    notes.write_bytes(LINES)
    for path in (snapshot, notes):
        os.utime(path, (0, 0))
    store = FileStore(db.sessions(db.connect(fake_stack.database_url)), fake_stack.folder / "files")
    store.purge()
    assert sdk.files.content(made.id).content == LINES
    # Put aside first: the database may be an older copy of itself.
    aside = fake_stack.folder / "files" / "unknown" / orphan.name
    assert sorted(on_disk(fake_stack)) == sorted([kept, aside, notes]) and snapshot.is_dir()
    os.utime(aside, (0, 0))
    store.purge()
    assert sorted(on_disk(fake_stack)) == sorted([kept, notes])
    notes.unlink()
    snapshot.rmdir()


def test_odd_ids_are_not_found(http: httpx.Client) -> None:
    for path in (
        "/files/%00",
        "/files/%00/content",
        "/files/x",
        "/batches/%00",
        "/fine_tuning/jobs/%00",
        "/models/ft:%00",
    ):
        assert http.get(path).status_code == 404, path
    for path in ("/uploads/%00/complete", "/uploads/%00/cancel", "/batches/%00/cancel", "/fine_tuning/jobs/%00/cancel"):
        assert http.post(path, json={}).status_code in (400, 404), path


def test_ranges(http: httpx.Client, sdk: openai.OpenAI) -> None:
    made = sdk.files.create(file=("a", b"0123456789"), purpose="user_data").id
    part = http.get(f"/files/{made}/content", headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")
    odd = http.get(f"/files/{made}/content", headers={"Range": "junk"})
    assert (odd.status_code, odd.content) == (200, b"0123456789")
    assert http.head(f"/files/{made}/content").headers["content-length"] == "10"


def test_bytes_that_are_gone(fake_stack: Stack, sdk: openai.OpenAI, empty: None) -> None:
    made = sdk.files.create(file=("a", LINES), purpose="user_data").id
    [path] = on_disk(fake_stack)
    path.unlink()
    with pytest.raises(openai.NotFoundError):
        sdk.files.content(made)
    sdk.files.delete(made)
