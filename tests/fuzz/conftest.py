"""How many cases, which stack, and strategies that the tests share."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from testing.stack import Stack
from tests.cases.product import product

__all__ = ["product"]

#: Cases of one test. The default is bounded for every change; by hand thousands are run.
CASES = int(os.environ.get("CY_FUZZ_CASES", "40"))
REAL = os.environ.get("CY_FUZZ_STACK") == "real"

settings.register_profile(
    "cy",
    max_examples=CASES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize="CY_FUZZ_CASES" not in os.environ,
)
settings.load_profile("cy")


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Every face, on the fake engine or on real vLLM."""
    found: Stack = request.getfixturevalue("product" if REAL else "fake_stack")
    if not REAL and not any(process.name == "grpc" for process in found.processes):
        found.start_grpc()
    yield found


#: Text of every kind, half characters and control characters too.
texts = st.text(max_size=20) | st.sampled_from(
    ["", "\0", "\ud800", "👩‍👩‍👧", "../..", "a\nb", "²", "captain@²", "demo", "[DONE]"]
)
numbers = (
    st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 1.5, 100.0, -0.0, 1e308, 1e-320]) | st.integers()
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def paths(value: Any) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found: list[tuple[Any, ...]] = [()]
    if isinstance(value, dict):
        found += [(key, *rest) for key, item in value.items() for rest in paths(item)]
    elif isinstance(value, list):
        found += [(index, *rest) for index, item in enumerate(value) for rest in paths(item)]
    return found


def replaced(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """Return a copy of a JSON value with one place changed."""
    if not path:
        return change(value)
    head, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {key: replaced(item, rest, change) if key == head else item for key, item in value.items()}
    return [replaced(item, rest, change) if index == head else item for index, item in enumerate(value)]


@st.composite
def mutations(draw: st.DrawFn, rights: list[Any]) -> Any:
    """A right value with one to three places made into something else, left out, or given twice over."""
    found = draw(st.sampled_from(rights))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths(found)))
        new = draw(values)
        kind = draw(st.sampled_from(["replace", "replace", "wrap", "add"]))
        if kind == "replace":
            found = replaced(found, path, lambda _, new=new: new)
        elif kind == "wrap":
            found = replaced(found, path, lambda old: [old])
        else:
            name = draw(texts)
            found = replaced(found, path, lambda old, n=name, v=new: {**old, n: v} if isinstance(old, dict) else old)
    return found
