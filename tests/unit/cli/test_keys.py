"""Keys from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.__main__ import cli
from settings import Settings
from store.principal import Principal, Scope
from store.sql import db
from store.sql.authenticator import ApiKeyAuthenticator

Run = Callable[..., Result]


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'cli.db'}"
    monkeypatch.setenv("DATABASE_URL", url)
    return url


@pytest.fixture
def run(url: str) -> Run:
    return lambda *words: CliRunner().invoke(cli, ["keys", *words])


@pytest.fixture
def whose(url: str) -> Callable[[str], Principal | None]:
    def find(token: str) -> Principal | None:
        engine = db.connect(url)
        try:
            return ApiKeyAuthenticator(Settings(), db.sessions(engine)).authenticate(token)
        finally:
            engine.dispose()

    return find


def parsed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_a_key_is_made_listed_and_revoked(run: Run, whose: Callable[[str], Principal | None]) -> None:
    token = run("add", "ci", "--right", "inference").output.strip()
    principal = whose(token)
    assert principal is not None
    assert principal.scopes == {Scope.INFERENCE}
    assert principal.tenant == "default"
    found = whose(run("create", "other", "--scope", "training", "--tenant", "acme").output.strip())
    assert found is not None
    assert (found.tenant, found.scopes) == ("acme", {Scope.TRAINING})
    again = run("create", "ci")
    assert again.exit_code != 0
    assert "'ci' exists" in again.output
    listed = run("list").output
    assert "ci" in listed
    assert token not in listed
    assert token[:9] in listed
    assert run("revoke", "ci").exit_code == 0
    assert whose(token) is None
    assert "revoked" in run("list").output
    assert run("revoke", "ci").exit_code != 0


def test_all_that_a_key_may_have(run: Run, whose: Callable[[str], Principal | None]) -> None:
    made = parsed(
        run(
            *("create", "app", "--tenant", "acme", "--scopes", "inference, openai", "--models", "demo,loud"),
            *("--models", "tiny", "--rpm", "30", "--streams", "2", "--expires", "90d", "--json"),
        )
    )
    found = whose(made["key"])
    assert found is not None
    assert found.models == {"demo", "loud", "tiny"}
    assert (found.bounds.requests_per_minute, found.bounds.streams) == (30, 2)
    assert found.scopes == {Scope.INFERENCE, Scope.OPENAI}
    assert found.expires_at is not None
    [listed] = parsed(run("list", "--tenant", "acme", "--json"))
    assert listed == {name: value for name, value in made.items() if name != "key"}
    assert parsed(run("show", "app", "--json")) == listed
    assert "demo, loud, tiny" in run("show", "app").output
    assert parsed(run("list", "--tenant", "nobody", "--json")) == []


def test_a_key_is_rotated(run: Run, whose: Callable[[str], Principal | None]) -> None:
    old = run("create", "ci").output.strip()
    new = run("rotate", "ci").output.strip()
    assert new != old
    assert whose(old) == whose(new)
    newest = parsed(run("rotate", "ci", "--overlap", "0", "--json"))["key"]
    assert whose(new) is None
    assert whose(newest) is not None


def test_of_keys_with_one_name_the_tenant_says_which(run: Run, whose: Callable[[str], Principal | None]) -> None:
    tokens = {tenant: run("create", "ci", "--tenant", tenant).output.strip() for tenant in ("a", "b")}
    refused = run("revoke", "ci")
    assert refused.exit_code != 0
    assert "(a, b)" in refused.output
    assert run("revoke", "ci", "--tenant", "a").exit_code == 0
    assert (whose(tokens["a"]), whose(tokens["b"]) is None) == (None, False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--expires", "yesterday"), "is no date"),
        (("--expires", "2020-01-01"), "lies in the past"),
        (("--scopes", "inference,everything"), "'everything' is none of"),
        (("--rpm", "-1"), "--rpm"),
        (("--tenant", " "), "1 to 64 characters"),
    ],
)
def test_what_is_wrong_is_told(run: Run, words: tuple[str, ...], said: str) -> None:
    refused = run("create", "ci", *words)
    assert refused.exit_code == 2
    assert said in refused.output
    assert parsed(run("list", "--json")) == []


def test_what_is_not_there_is_told(run: Run) -> None:
    for command in ("show", "revoke", "rotate"):
        refused = run(command, "nobody")
        assert refused.exit_code == 1
        assert "no key is called 'nobody'" in refused.output
