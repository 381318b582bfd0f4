"""What the doctor sees of an installation, with a real Redis and a real database."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from sqlalchemy import text

from cli.__main__ import cli
from cli.doctor import host_checks, redis_checks
from launcher.redis_server import RedisServer
from store.redis import keys
from store.redis.presence import PresenceAnnouncer, State, WorkerInfo
from store.sql import db

Findings = dict[str, list[dict[str, str]]]
Look = Callable[..., tuple[int, Findings]]


@pytest.fixture
def look(tmp_path: Path, redis_server: RedisServer, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Run it on an installation that is in order, but for the variables given; its status, and findings by part."""
    redis_client.config_set("appendonly", "yes")
    redis_client.config_set("maxmemory-policy", "noeviction")
    url = f"sqlite:///{tmp_path / 'doctor.db'}"
    db.migrate(url)
    model_file = tmp_path / "config.json"
    model_file.write_text(json.dumps({"models": {"fake": {"model_path": "none", "engine": "fake"}}, "default": "fake"}))
    usual = {
        "REDIS_URL": redis_server.url,
        "DATABASE_URL": url,
        "CY_LLM_API_KEY": "secret-key",
        "CY_LLM_CONFIG": str(model_file),
        "CY_LLM_HOST": "127.0.0.1",
        **{name: str(_free_port()) for name in ("CY_LLM_PORT", "CY_LLM_OPENAI_PORT", "CY_LLM_GRPC_PORT")},
    }

    def run(**variables: str) -> tuple[int, Findings]:
        for name, value in {**usual, **variables}.items():
            monkeypatch.setenv(name, value)
        result = CliRunner().invoke(cli, ["doctor", "--json"])
        found: Findings = {}
        # How long a round trip takes is this machine's matter, not the installation's.
        for each in (each for each in json.loads(result.output) if "a round trip takes" not in each["what"]):
            found.setdefault(each["part"], []).append(each)
        assert all(each["remedy"] for parts in found.values() for each in parts if each["level"] != "ok")
        return result.exit_code, found

    return run


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def levels(findings: Findings, part: str) -> list[str]:
    return [each["level"] for each in findings[part]]


def said(findings: Findings, part: str) -> str:
    return "\n".join(each["what"] for each in findings[part])


def present(client: redis.Redis, worker: WorkerInfo) -> None:
    """Let a worker show itself, for as long as the test takes."""
    PresenceAnnouncer(client).renew(worker)
    client.persist(keys.worker(worker.instance_id))


def test_an_installation_that_is_in_order(look: Look, redis_client: redis.Redis) -> None:
    present(redis_client, WorkerInfo("w@host", "w@host:1", State.READY, ["gpu-infer"], models={"fake": {}}))
    status, found = look()
    assert status == 0, found
    bad = [each for parts in found.values() for each in parts if each["level"] != "ok" and each["part"] != "disk"]
    assert bad == []
    assert "w@host: fake, 0 running" in said(found, "workers")
    parts = "packages gpu models redis clock workers usage database keys disk ports"
    assert set(found) == set(parts.split())


def test_its_words_for_people(look: Look, redis_client: redis.Redis) -> None:
    look()
    redis_client.config_set("appendonly", "no")
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 0
    assert "! redis" in result.output
    assert "-> CONFIG SET appendonly yes" in result.output
    assert "0 failures, " in result.output
    assert "secret-key" not in result.output


def test_a_redis_that_is_away_or_forgets(look: Look, redis_client: redis.Redis) -> None:
    status, found = look(REDIS_URL=f"redis://:password@127.0.0.1:{_free_port()}/0")
    assert status == 1
    assert levels(found, "redis") == ["failure"]
    assert "password" not in json.dumps(found)
    # The rest is looked at all the same.
    assert levels(found, "database") == ["ok"]
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    redis_client.config_set("appendonly", "no")
    redis_client.config_set("maxmemory", 10**9)
    try:
        status, found = look()
    finally:
        redis_client.config_set("maxmemory", 0)
        redis_client.config_set("maxmemory-policy", "noeviction")
    assert status == 0
    assert levels(found, "redis").count("warning") == 2
    assert "allkeys-lru" in said(found, "redis")
    assert "append-only file is off" in said(found, "redis")


def test_an_old_redis_a_slow_one_and_one_with_another_time() -> None:
    class Odd:
        def ping(self) -> bool:
            return True

        def info(self) -> dict[str, Any]:
            return {
                "redis_version": "5.0.7",
                "role": "slave",
                "aof_enabled": 1,
                "maxmemory": 100 << 20,
                "used_memory": 90 << 20,
                "aof_last_write_status": "err",
            }

        def time(self) -> tuple[int, int]:
            return 1_000_000, 0

    odd: Any = Odd()
    found = [
        *redis_checks._settings(odd.info()),
        *redis_checks._clock(odd),
    ]
    words = "\n".join(each.what for each in found)
    for word in ("it is a replica", "90 of 100 MiB", "the append-only file could not be written", "behind"):
        assert word in words


def test_workers_that_are_gone_or_not_ready(look: Look, redis_client: redis.Redis) -> None:
    _, found = look()
    assert "none shows itself" in said(found, "workers")
    present(redis_client, WorkerInfo("w@host", "w@host:1", State.LOADING, ["gpu-infer"]))
    _, found = look()
    assert "w@host is loading" in said(found, "workers")


def test_requests_that_nobody_books(look: Look, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_checks, "_UNBOOKED", 2)
    for _ in range(3):
        redis_client.xadd(keys.bills(), {"b": "{}"})
    _, found = look()
    assert (levels(found, "usage"), "3 requests wait" in said(found, "usage")) == (["warning"], True)


def test_tables_that_are_missing_old_or_too_new(look: Look, tmp_path: Path) -> None:
    status, found = look(DATABASE_URL=f"sqlite:///{tmp_path / 'empty.db'}")
    assert (status, levels(found, "database")) == (0, ["warning"])
    assert "missing" in said(found, "database")
    for revision, level in (("0001", "warning"), ("9999", "failure")):
        url = f"sqlite:///{tmp_path / f'{revision}.db'}"
        db.migrate(url)
        with db.connect(url).begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :it"), {"it": revision})
        status, found = look(DATABASE_URL=url)
        assert (status, levels(found, "database")) == (int(level == "failure"), [level])
        assert revision in said(found, "database")
    status, found = look(DATABASE_URL="postgresql+psycopg://user:hidden@127.0.0.1:1/none")
    assert (status, levels(found, "database")) == (1, ["failure"])
    assert "hidden" not in json.dumps(found)


def test_a_door_without_a_key(look: Look) -> None:
    status, found = look(CY_LLM_API_KEY="")
    assert (status, levels(found, "keys")) == (0, ["warning"])
    status, found = look(CY_LLM_API_KEY="", CY_LLM_HOST="0.0.0.0")
    assert (status, levels(found, "keys")) == (1, ["failure"])


def test_ports_that_are_taken_or_the_same(look: Look) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        _, found = look(CY_LLM_PORT=str(taken.getsockname()[1]))
    assert "listened on" in said(found, "ports")
    assert levels(found, "ports").count("warning") == 1
    port = str(_free_port())
    status, found = look(CY_LLM_PORT=port, CY_LLM_OPENAI_PORT=port)
    assert (status, levels(found, "ports").count("failure")) == (1, 1)


def test_a_model_file_that_cannot_be_used(look: Look, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    status, found = look(CY_LLM_CONFIG=str(broken))
    assert (status, levels(found, "models")) == (1, ["failure"])


def test_a_disk_that_is_full(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_checks, "_LITTLE_SPACE", 2**62)
    _, found = look()
    assert "warning" in levels(found, "disk")


def test_a_card_and_a_driver_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.1, 143771, 512'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    [card] = host_checks.look_at_cards()
    assert (card.level, card.what) == ("ok", "0: NVIDIA H200, 512 of 143771 MiB used, driver 570.1")
    tool.write_text("#!/bin/sh\nexit 9\n")
    [broken] = host_checks.look_at_cards()
    assert broken.level == "failure"


def test_packages_of_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_checks, "version", lambda name: "0.0.1+cpu")
    [found] = host_checks.look_at_packages()
    assert found.level == "warning"
    assert "celery 0.0.1+cpu instead of" in found.what


def test_the_redis_that_serve_started_is_found(
    look: Look, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    var = tmp_path / "var"
    (var / "redis").mkdir(parents=True)
    server = RedisServer(var / "redis", appendfsync="no")
    server.start()
    try:
        status, found = look(REDIS_URL="", CY_LLM_VAR=str(var))
        assert (status, levels(found, "redis")[0]) == (0, "ok")
        # Another one that is named is the one that is meant.
        _, found = look(REDIS_URL=redis_server.url, CY_LLM_VAR=str(var))
        assert str(var) not in said(found, "redis")
    finally:
        server.stop()
