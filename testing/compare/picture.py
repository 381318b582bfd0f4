"""The rows as a picture: bars, in SVG.

A drawing library would be a dependency of every installation, for this alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

#: What is drawn of each row: its name there, what people read, and whether more is better.
_PANELS = (
    ("tokens_per_second", "tokens a second (more is better)"),
    ("ttft_p50", "time to first token, median, ms (less is better)"),
    ("ttft_p99", "time to first token, 99th percentile, ms (less is better)"),
    ("cpu_request", "CPU outside the engine core, ms a request (less is better)"),
)
_COLOURS = ("#9aa5b1", "#2563eb")
#: Pixels.
_WIDTH, _LABELS, _VALUES, _BAR, _GAP, _HEAD = 760, 190, 70, 16, 12, 34


def draw(rows: Sequence[Mapping[str, Any]], names: tuple[str, str], model: str) -> str:
    """Return the picture of ``rows`` (``testing.compare.table``); ``names`` are the other system and this one."""
    parts: list[str] = []
    y = 28

    def text(x: float, y: float, words: str, **style: str) -> None:
        attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
        parts.append(f'<text x="{x:.0f}" y="{y:.0f}"{attributes}>{escape(words)}</text>')

    def bar(y: float, width: float, colour: str) -> None:
        parts.append(f'<rect x="{_LABELS}" y="{y:.0f}" width="{max(1.0, width):.1f}" height="{_BAR}" fill="{colour}"/>')

    text(10, y, f"{model}: {names[1]} beside {names[0]}", font_size="16", font_weight="bold")
    y += 16
    for side, name in enumerate(names):
        parts.append(f'<rect x="{10 + side * 180}" y="{y}" width="12" height="12" fill="{_COLOURS[side]}"/>')
        text(28 + side * 180, y + 11, name)
    y += 12
    room = _WIDTH - _LABELS - _VALUES
    for key, title in _PANELS:
        y += _HEAD
        text(10, y, title, font_weight="bold")
        y += 10
        most = max(max(row[key]) for row in rows) or 1.0
        for row in rows:
            load = row["load"] if "requests" in row["load"] else f"{row['load']} streams"
            text(_LABELS - 8, y + _BAR + 5, f"{row['shape']}, {load}", text_anchor="end")
            for side, value in enumerate(row[key]):
                bar(y, room * value / most, _COLOURS[side])
                text(_LABELS + room * value / most + 6, y + _BAR - 4, f"{value:,.0f}")
                y += _BAR
            y += _GAP
    height = y + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        + "".join(parts)
        + "</svg>\n"
    )
