"""The environment is read once, typed."""

from pathlib import Path

import pytest

from configuration.errors import ConfigurationError
from configuration.redis_address import parse_redis
from settings import Settings


def test_defaults_hold_without_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "DATABASE_URL", "CY_LLM_API_KEY", "GATEWAY_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert Settings.from_env() == Settings()


def test_variables_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REDIS_URL", "unix:///run/r.sock")
    monkeypatch.setenv("CY_LLM_CONFIG", str(tmp_path / "c.json"))
    monkeypatch.setenv("CY_LLM_PORT", "9")
    settings = Settings.from_env()
    assert parse_redis(settings.redis_url).socket == "/run/r.sock"
    assert settings.config_path == tmp_path / "c.json"
    assert settings.port == 9


@pytest.mark.parametrize(("name", "value"), [("CY_LLM_PORT", "http"), ("CY_LLM_LOG_LEVEL", "LOUD")])
def test_an_unreadable_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name):
        Settings.from_env()


def test_secrets_are_not_shown() -> None:
    assert "hidden" not in repr(Settings(api_key="hidden", gateway_api_token="hidden"))


@pytest.mark.parametrize("value", ["", "  ", "tcp://10.0.0.1:8080"])
def test_an_empty_or_injected_value_is_unset(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    """Compose files pass empty text; Kubernetes sets the port of a Service of our name."""
    monkeypatch.setenv("CY_LLM_PORT", value)
    assert Settings.from_env().port == 8080
    assert ("Kubernetes" in caplog.text) == value.startswith("tcp")


def test_white_space_around_a_key_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CY_LLM_API_KEY", " key\r\n")
    assert Settings.from_env().api_key == "key"
