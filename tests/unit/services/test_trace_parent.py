"""The W3C header, as the standard has it."""

import pytest

from services.trace_parent import trace_id_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"  00-{TRACE}-00f067aa0ba902b7-00 ", TRACE),
        # A later version may say more.
        (f"01-{TRACE}-00f067aa0ba902b7-01-more", TRACE),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", ""),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", ""),
        (f"00-{TRACE}-00f067aa0ba902b7", ""),
        ("x\n00", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_the_header(header: str | None, found: str) -> None:
    assert trace_id_of(header) == found
