"""Where one worker's part of a streamed answer ends and the next one's begins."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.types import Portion
from tasks.worker.inference.portions import decode_portions, encode_portions
from tasks.worker.inference.seam import DoesNotFit, Seam


def event(text: str, call_id: str = "call-1", created: int = 100, **more: object) -> bytes:
    delta = {"content": text, "tool_calls": [{"index": 0, "id": call_id}]}
    value = {"id": "chatcmpl-1", "created": created, "choices": [{"delta": delta, **more}]}
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def test_what_the_client_has_is_left_out_and_the_rest_keeps_its_ids() -> None:
    seam = Seam(event("a") + event("b"))
    new = {"call_id": "call-2", "created": 200}
    assert [seam.join(event(text, **new)) for text in "abc"] == [b"", b"", event("c")]  # type: ignore[arg-type]
    assert seam.join(b"data: [DONE]\n\n") == b"data: [DONE]\n\n"


def test_measures_may_differ_and_texts_may_not() -> None:
    assert Seam(event("a", logprobs=[{"logprob": -0.1}])).join(event("a", logprobs=[{"logprob": 0.0}])) == b""
    for other in (event("b"), event("a", finish_reason="stop"), b"data: [DONE]\n\n", b"event: x\n" + event("a")):
        with pytest.raises(DoesNotFit):
            Seam(event("a")).join(other)


def test_named_events() -> None:
    old, new = (b"event: made\n" + event("a", created=created) for created in (1, 2))
    seam = Seam(old)
    assert seam.join(new) == b""
    assert seam.join(new) == old


def test_a_text_may_look_like_the_field_of_an_event() -> None:
    seam = Seam(event("data: x"))
    assert seam.join(event("data: x", call_id="call-2")) == b""
    assert seam.join(event("y", call_id="call-2")) == event("y")


def test_a_mark_is_each_run_s_own() -> None:
    seam = Seam(event("a", signature="old"))
    assert seam.join(event("a", signature="new")) == b""
    assert seam.join(event("b", signature="new")) == event("b", signature="old")


_PORTIONS = st.lists(
    st.builds(
        Portion,
        st.lists(st.integers(0, 200_000), max_size=4).map(tuple),
        st.sampled_from([None, "stop", "length", "repetition"]),
        st.none(),
        st.integers(0, 3),
    ),
    max_size=5,
)


@settings(deadline=None)
@given(_PORTIONS, _PORTIONS)
def test_portions_come_back_as_they_were(portions: list[Portion], more: list[Portion]) -> None:
    assert decode_portions(encode_portions(portions)) == tuple(portions)
    # What two entries of a log tell is joined.
    joined = ",".join(filter(None, (encode_portions(portions), encode_portions(more))))
    assert decode_portions(joined) == (*portions, *more)


@settings(deadline=None)
@given(_PORTIONS)
def test_portions_of_one_choice_are_whole_numbers(portions: list[Portion]) -> None:
    """A version that knows nothing of choices reads those."""
    encoded = encode_portions([portion._replace(choice=0) for portion in portions])
    assert all(int(word) < 200_001 for word in encoded.split(",") if word)


def test_a_stop_token_is_kept_and_a_stop_string_found_again() -> None:
    by_token, by_string = Portion((1, 2), "stop", 2), Portion((3,), "stop", "end")
    assert decode_portions(encode_portions([by_token])) == (by_token,)
    assert decode_portions(encode_portions([by_string])) == (Portion((3,), "stop", ""),)
    with pytest.raises(ValueError, match="must begin first"):
        decode_portions("1")


def test_a_run_that_ends_before_the_seam_is_seen() -> None:
    seam = Seam(event("a") + event("b"))
    assert seam.join(event("a")) == b"" and not seam.passed
    assert seam.join(event("b")) == b"" and seam.passed
