"""Addresses mean the same to every library, or are refused with one line."""

from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection
from kombu.transport.redis import Channel

from configuration.database_address import parse_database, sqlite_address
from configuration.listen_address import is_loopback, join, parse_host, reachable
from configuration.redis_address import RedisAddress, parse_redis
from store.redis.client import connection_pool

_READ = ("host", "port", "path", "db", "username", "password", "ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_certs")


def by_kombu(address: RedisAddress) -> dict[str, Any]:
    """What kombu's transport hands to redis-py for our broker URL."""
    connection = Connection(address.broker_url, ssl=address.tls_options() or None)
    channel = Channel.__new__(Channel)
    channel.connection = type("T", (), {"client": connection, "default_port": 6379})()
    return {name: value for name, value in channel._connparams().items() if name in _READ and value is not None}


def by_redis(url: str) -> dict[str, Any]:
    """What redis-py connects with."""
    pool = connection_pool(url)
    pool.make_connection()
    return {name: value for name, value in pool.connection_kwargs.items() if name in _READ and value is not None}


@pytest.mark.parametrize(
    ("url", "means"),
    [
        ("redis://h", {"host": "h", "port": 6379, "db": 0}),
        ("redis://h:6380/4", {"host": "h", "port": 6380, "db": 4}),
        ("redis://h:6379?db=4", {"host": "h", "port": 6379, "db": 4}),
        ("redis://", {"host": "localhost", "port": 6379, "db": 0}),
        ("redis://H.Example:6379/0", {"host": "h.example", "port": 6379, "db": 0}),
        ("redis://[::1]:6379/1", {"host": "::1", "port": 6379, "db": 1}),
        (
            "redis://:p%40ss%2Fw%23rd@localhost:6379/5",
            {"host": "localhost", "port": 6379, "db": 5, "password": "p@ss/w#rd"},
        ),
        ("redis://me:a%25b@h/0", {"host": "h", "port": 6379, "db": 0, "username": "me", "password": "a%b"}),
        ("unix:///run/r.sock?db=3", {"path": "/run/r.sock", "db": 3}),
        ("unix:///run/r.sock?virtual_host=3", {"path": "/run/r.sock", "db": 3}),
        ("redis+socket:///run/r.sock?virtual_host=3", {"path": "/run/r.sock", "db": 3}),
        ("unix:///run/a%20b/%23c%3Fd/%25é.sock", {"path": "/run/a b/#c?d/%é.sock", "db": 0}),
        ("unix://:secret@/run/r.sock", {"path": "/run/r.sock", "db": 0, "password": "secret"}),
        ("rediss://h:6380/0", {"host": "h", "port": 6380, "db": 0, "ssl_cert_reqs": 2, "ssl_check_hostname": True}),
        (
            "rediss://h:6380/0?ssl_cert_reqs=CERT_REQUIRED",
            {"host": "h", "port": 6380, "db": 0, "ssl_cert_reqs": 2, "ssl_check_hostname": True},
        ),
        (
            "rediss://h/0?ssl_cert_reqs=none",
            {"host": "h", "port": 6379, "db": 0, "ssl_cert_reqs": 0, "ssl_check_hostname": False},
        ),
    ],
)
def test_both_libraries_read_the_same(url: str, means: dict[str, Any]) -> None:
    assert by_redis(url) == means
    assert by_kombu(parse_redis(url)) == means


def test_sentinels() -> None:
    address = parse_redis("sentinel://:pw@a:26379,[::1]/2?master_name=mine&sentinel_password=s")
    assert address.sentinels == (("a", 26379), ("::1", 26379))
    assert (address.master_name, address.database, address.password) == ("mine", 2, "pw")
    assert address.broker_url == "sentinel://:pw@a:26379/2;sentinel://:pw@[::1]:26379/2"
    assert address.broker_options == {"master_name": "mine", "sentinel_kwargs": address.sentinel_options()}
    assert address.sentinel_options()["password"] == "s"
    assert parse_redis("sentinels://a/0?master_name=m").sentinel_options()["ssl"] is True


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://h", "must be redis://"),
        ("h:6379", "must be redis://"),
        ("redis://:a#b@h:6379/0", "%23"),
        ("redis://h:6379/zero", "not a number"),
        ("redis://h:six/0", "port"),
        ("redis://h:0/0", "port"),
        ("redis://h:99999/0", "port"),
        ("redis://user@h/0", "password"),
        ("redis://::1:6379/0", "brackets"),
        ("redis://h/0?ssl=true", "an option"),
        ("redis://h/0?ssl_cert_reqs=none", "'ssl_cert_reqs'"),
        ("redis://:pa?ss=word@h/0", "%3F"),
        ("redis://h/1?db=2", "two numbers"),
        ("redis://a,b/0", "sentinel://"),
        ("rediss://h/0?ssl_cert_reqs=maybe", "ssl_cert_reqs"),
        ("rediss://h/0?ssl_ca_certs=/nowhere.pem", "does not exist"),
        ("unix://relative.sock", "absolute"),
        ("sentinel://h:26379/0", "master_name"),
        ("rediscluster://h", "Cluster"),
        ("redis+cluster://h", "Cluster"),
    ],
)
def test_what_cannot_be_read_is_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_redis(url)
    assert words in str(caught.value)


@given(
    user=st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8),
    password=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12),
    database=st.integers(0, 15),
)
def test_any_password_reaches_both_libraries(user: str | None, password: str, database: int) -> None:
    from urllib.parse import quote

    url = f"redis://{quote(user or '', safe='')}:{quote(password, safe='')}@h:6379/{database}"
    assert by_redis(url) == by_kombu(parse_redis(url))
    assert by_redis(url)["password"] == password


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    for scheme in ("", "redis://", "rediss://", "unix:///", "sentinel://"):
        try:
            address = parse_redis(scheme + text)
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        if not address.sentinels and not (address.tls and address.tls.ca_file):
            assert by_redis(scheme + text) == by_kombu(address)
        assert isinstance(address.broker_url, str)


@pytest.mark.parametrize(
    ("value", "host"),
    [("::1", "::1"), ("[::1]", "::1"), ("::", "::"), ("0.0.0.0", "0.0.0.0"), ("my-host.example", "my-host.example")],
)
def test_addresses_to_listen_on(value: str, host: str) -> None:
    assert parse_host(value) == host
    assert join(host, 80) == (f"[{host}]:80" if ":" in host else f"{host}:80")


@pytest.mark.parametrize("value", ["http://x", "x:80", "[x]", "256.1.1.1", "a b", "::g", "[::1]:80", "-x", ""])
def test_what_is_no_address_to_listen_on(value: str) -> None:
    with pytest.raises(ValueError, match="must be an IPv4"):
        parse_host(value)


def test_where_a_client_finds_it() -> None:
    assert [reachable(host) for host in ("", "0.0.0.0", "::", "::1", "10.0.0.1")] == [
        "127.0.0.1",
        "127.0.0.1",
        "::1",
        "::1",
        "10.0.0.1",
    ]
    assert is_loopback("localhost") and is_loopback("::1") and not is_loopback("10.0.0.1")


@pytest.mark.parametrize("name", ["a b", "a#b", "a%20b", "a?b", "é你", "100%"])
def test_a_sqlite_file_in_any_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "x.db"
    assert parse_database(sqlite_address(path)).database == str(path)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("mysql://h/x", "postgresql://"),
        ("sqlite://", "file"),
        ("sqlite:///:memory:", "memory"),
        ("postgresql://h:port/x", "postgresql://"),
        ("postgresql://h", "no database"),
        ("postgresql+asyncpg://h/x", "driver"),
        ("nonsense", "sqlite:///"),
    ],
)
def test_databases_that_are_refused(address: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_database(address)
    assert words in str(caught.value)


def test_options_of_a_database_stay(tmp_path: Path) -> None:
    assert parse_database(f"{sqlite_address(tmp_path / 'x')}?timeout=9").query == {"timeout": "9"}
    assert parse_database("postgres://u:p%40@h/x?sslmode=require").render_as_string(False) == (
        "postgresql+psycopg://u:p%40@h/x?sslmode=require"
    )


def test_redis_is_used_by_nobody_else_s_reading() -> None:
    """Whoever reads an address by itself would read it otherwise."""
    assert redis.Redis.from_url is not None
    strays = [
        str(path)
        for room in ("store", "services", "tasks", "webapp", "launcher", "cli")
        for path in Path(room).rglob("*.py")
        if "from_url(" in path.read_text()
    ]
    assert strays == []
