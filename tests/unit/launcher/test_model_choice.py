"""Which model ``bin/serve`` serves, and what becomes of one that cannot be had."""

from pathlib import Path
from typing import Any

import pytest

from engines.errors import ConfigError
from engines.models.download import CannotFetch
from engines.registry import Registry, parse_registry
from launcher import model_choice
from launcher.model_choice import choose_model
from settings import Settings

_MODELS: dict[str, Any] = {
    "default": "small",
    "models": {"small": {"modelPath": "pypi:smollm2-135m"}, "demo": {"modelPath": "models/demo"}},
}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return parse_registry(_MODELS, tmp_path)


def choose(registry: Registry, asked: str, said: list[str]) -> str:
    return choose_model(registry, asked, Settings(), {}, said.append)


def test_the_default_is_fetched(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(model_choice, "ensure_model", lambda name, *_: fetched.append(name))
    assert choose(registry, "", []) == "small"
    assert choose(registry, "demo", []) == "demo"
    assert fetched == ["smollm2-135m"]


def test_without_it_the_demo_is_served(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise CannotFetch("the index is away")

    monkeypatch.setattr(model_choice, "ensure_model", fail)
    said: list[str] = []
    assert choose(registry, "", said) == "demo"
    assert said == ["the index is away. Serving the model 'demo' instead"]
    with pytest.raises(CannotFetch):
        choose(registry, "small", [])


def test_a_model_that_is_not_configured(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="known: small, demo"):
        choose(registry, "large", [])


def test_progress_is_told_in_steps(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure(name: str, root: Path, environment: Any, say: Any, progress: Any) -> None:
        for have in range(1001):
            progress(have * 1000, 1_000_000)

    monkeypatch.setattr(model_choice, "ensure_model", ensure)
    said: list[str] = []
    choose(registry, "", said)
    assert len(said) == 10
