"""The one door of text."""

import json
import tracemalloc

import pytest

from text import NotText, clean_token, decode, field_with_half_a_character, is_token, quote, require_whole_characters

_HALF = "\ud83d"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("x".encode("utf-16"), "UTF-16"),
        (b"\xed\xa0\xbd", "two halves"),
        ("é".encode("latin-1"), "byte 0"),
    ],
)
def test_what_is_no_text(raw: bytes, words: str) -> None:
    with pytest.raises(NotText, match=words):
        decode(raw)


def test_marks_are_left_away() -> None:
    assert decode(b"\xef\xbb\xbfx") == "x"


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"a": [{"b": _HALF}]}, "a[0].b"),
        ({"a": 1, "b": ["x", [_HALF]]}, "b[1][0]"),
        (_HALF, ""),
        ([[], {}, {"a": {"b": {}}}, {"c": _HALF}], "[3].c"),
    ],
)
def test_half_a_character_is_found(value: object, field: str) -> None:
    text = json.dumps(value)
    with pytest.raises(NotText) as caught:
        require_whole_characters(text, json.loads(text))
    assert caught.value.field == field
    raw = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert field_with_half_a_character(raw) == field


def test_half_a_character_in_a_name_is_found() -> None:
    text = json.dumps({"a": {_HALF: 1}})
    with pytest.raises(NotText) as caught:
        require_whole_characters(text, json.loads(text))
    assert caught.value.field == "a.?"


def test_a_whole_emoji_passes() -> None:
    text = json.dumps({"a": "😀"})
    assert "\\ud83d" in text
    require_whole_characters(text, json.loads(text))


@pytest.mark.parametrize("last", ["😀", _HALF])
def test_many_values_under_a_long_name_cost_no_memory(last: str) -> None:
    """Paths of all of them would be the name's length times their number: 60 KB cost 287 MiB."""
    text = json.dumps({"K" * 20_000: [0] * 20_000, "e": last})
    value = json.loads(text)
    tracemalloc.start()
    try:
        require_whole_characters(text, value)
    except NotText as error:
        assert error.field == "e"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_tokens_and_quotes() -> None:
    assert clean_token("\ufeff key \r\n") == "key"
    assert is_token("key") and not is_token("two words") and not is_token("ключ")
    assert quote("a\0b") == "'a\\x00b'"
    assert len(quote("x" * 500)) < 90
