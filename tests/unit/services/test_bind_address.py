"""Without a key the front door listens on this machine only."""

from pathlib import Path

import pytest

from services.bind_address import InsecureBindError, addresses
from settings import Settings
from store.sql import db


@pytest.fixture
def url(tmp_path: Path) -> str:
    address = f"sqlite:///{tmp_path / 'bind.db'}"
    db.migrate(address)
    return address


def test_open_means_loopback_and_a_warning(url: str, caplog: pytest.LogCaptureFixture) -> None:
    assert addresses(Settings(database_url=url)) == ["127.0.0.1:8080", "127.0.0.1:8000"]
    assert "No API key" in caplog.text


def test_with_a_key_all_addresses(url: str) -> None:
    assert addresses(Settings(database_url=url, api_key="k")) == ["0.0.0.0:8080", "0.0.0.0:8000"]
    assert addresses(Settings(database_url=url, gateway_api_token="k", port=1)) == ["0.0.0.0:1", "0.0.0.0:8000"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.test"])
def test_open_to_the_network_is_refused(url: str, host: str) -> None:
    with pytest.raises(InsecureBindError, match="CY_LLM_API_KEY"):
        addresses(Settings(database_url=url, host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_may_be_named(url: str, host: str) -> None:
    shown = f"[{host}]" if ":" in host else host
    assert addresses(Settings(database_url=url, host=host))[0] == f"{shown}:8080"
