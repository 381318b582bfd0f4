"""Entry ids and frames."""

import pytest

from store.token_log.entries import LAST_SEQUENCE, Entry, EntryId, Kind

NO_IDS = ["", "1", "-", "1-", "-1", "a-1", "1-b", "1-1-1", "-1-1", "1--1", "１-1", f"1-{LAST_SEQUENCE + 1}"]


@pytest.mark.parametrize("text", NO_IDS)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an entry id"):
        EntryId.parse(text)


def test_ids_are_ordered_by_attempt_then_sequence() -> None:
    ids = [EntryId.parse(text) for text in ("2-1", f"1-{LAST_SEQUENCE}", "1-10", "1-9")]
    assert [str(entry_id) for entry_id in sorted(ids)] == ["1-9", "1-10", f"1-{LAST_SEQUENCE}", "2-1"]


def test_a_frame_keeps_bytes_as_they_are() -> None:
    data = b"data: a b\n\n \x00\xff"
    assert Entry.parse_frame(b"3-6 3-7 b " + data) == (EntryId(3, 6), Entry(EntryId(3, 7), Kind.BODY, data))
