"""Keys from the command line."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.__main__ import cli
from settings import Settings
from store.sql import db
from store.sql.api_keys import ApiKeyAuthenticator, Scope


def test_a_key_is_made_listed_and_revoked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'cli.db'}"
    monkeypatch.setenv("DATABASE_URL", url)
    runner = CliRunner()
    token = runner.invoke(cli, ["keys", "add", "ci", "--right", "inference"]).output.strip()
    engine = db.connect(url)
    principal = ApiKeyAuthenticator(Settings(), db.sessions(engine)).authenticate(token)
    assert principal is not None
    assert principal.scopes == {Scope.INFERENCE}
    assert principal.tenant == "default"
    other = runner.invoke(cli, ["keys", "add", "other", "--scope", "training", "--tenant", "acme"]).output.strip()
    found = ApiKeyAuthenticator(Settings(), db.sessions(engine)).authenticate(other)
    assert found is not None
    assert (found.tenant, found.scopes) == ("acme", {Scope.TRAINING})
    again = runner.invoke(cli, ["keys", "add", "ci"])
    assert again.exit_code != 0
    assert "'ci' exists" in again.output
    listed = runner.invoke(cli, ["keys", "list"]).output
    assert "ci" in listed
    assert token not in listed
    assert runner.invoke(cli, ["keys", "revoke", "ci"]).exit_code == 0
    assert "revoked" in runner.invoke(cli, ["keys", "list"]).output
    assert runner.invoke(cli, ["keys", "revoke", "ci"]).exit_code != 0
    engine.dispose()
