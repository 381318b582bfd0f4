"""What was measured, as rows of a table."""

import statistics
from typing import Any

from testing.compare.systems import Load

HEAD = (
    "in/out",
    "streams",
    "tokens/s: bare / this",
    "ratio (spread)",
    "TTFT p50 ms",
    "ratio (spread), difference",
    "TTFT p99 ms",
    "ratio (spread)",
    "ITL p50 ms",
    "ITL p99 ms",
    "CPU s per 1,000 tokens",
    "CPU ms a request",
    "ratio (spread)",
    "client's cores",
    "failed",
)
#: Of which the ratio is shown, of each pair of runs.
_PAIRED = ("tokens_per_second", "ttft_p50", "ttft_p99", "cpu_request")


#: What the client measured of both in one round, the other system first.
Pair = tuple[dict[str, float], dict[str, float]]


def row(load: Load, pairs: list[Pair]) -> dict[str, Any]:
    """Medians of both, and the median of the paired ratios with their spread."""
    values: dict[str, Any] = {"shape": load.shape, "load": load.name}
    for name in pairs[0][0]:
        values[name] = [statistics.median(pair[side][name] for pair in pairs) for side in (0, 1)]
    for name in _PAIRED:
        ratios = sorted(mine[name] / theirs[name] for theirs, mine in pairs)
        values[f"{name}_ratio"] = (statistics.median(ratios), ratios[0], ratios[-1])
    values["ttft_difference"] = statistics.median(mine["ttft_p50"] - theirs["ttft_p50"] for theirs, mine in pairs)
    values["failed"] = sum(mine["failed"] for _, mine in pairs)
    return values


def line(values: dict[str, Any]) -> str:
    """A row of Markdown."""

    def both(name: str, digits: int) -> str:
        bare, this = values[name]
        return f"{bare:.{digits}f} / {this:.{digits}f}"

    def ratio(name: str) -> str:
        median, low, high = values[f"{name}_ratio"]
        return f"**{median:.2f}** ({low:.2f}-{high:.2f})"

    cells = [
        values["shape"],
        values["load"],
        both("tokens_per_second", 0),
        ratio("tokens_per_second"),
        both("ttft_p50", 0),
        f"{ratio('ttft_p50')}, {values['ttft_difference']:+.0f} ms",
        both("ttft_p99", 0),
        ratio("ttft_p99"),
        both("itl_p50", 1),
        both("itl_p99", 1),
        both("cpu", 2),
        both("cpu_request", 1),
        ratio("cpu_request"),
        both("client", 2),
        str(values["failed"]),
    ]
    return "| " + " | ".join(cells) + " |"
