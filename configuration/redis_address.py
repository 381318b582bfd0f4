"""The address of Redis, parsed once: every library gets explicit values, none reads the address itself.

redis-py and kombu understand one and the same URL differently (the number of the database, what TLS verifies,
sockets, Sentinel); half of an installation would then work on another database than the rest. So neither
ever sees what an operator wrote.
"""

import functools
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from configuration.listen_address import parse_host

_SCHEMES = ("redis", "rediss", "unix", "sentinel", "sentinels")
_ALLOWED = (
    "must be redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss:// for TLS, unix:///PATH[?db=DB], or "
    "sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT/DB?master_name=NAME (special characters as %XX)"
)
#: Celery's and redis-py's spellings of what TLS verifies.
_VERIFY = {
    "required": True,
    "cert_required": True,
    "none": False,
    "cert_none": False,
}
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_OPTIONS = {
    "redis": ("db",),
    "rediss": ("db", "ssl_cert_reqs", "ssl_check_hostname", *_TLS_FILES),
    "unix": ("db", "virtual_host"),
    "sentinel": ("db", "master_name", "sentinel_username", "sentinel_password"),
}
_OPTIONS["sentinels"] = (*_OPTIONS["sentinel"], *_OPTIONS["rediss"][1:])
_PORT = 6379
_SENTINEL_PORT = 26379
_MAX_DATABASE = 65_535
_SENTINEL_SECONDS = 1.0


@dataclass(frozen=True)
class Tls:
    """What TLS verifies, and by which files."""

    verify: bool = True
    check_hostname: bool = True
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


@dataclass(frozen=True)
class RedisAddress:
    """One Redis, or (``sentinels``) whichever of several is the master now."""

    host: str = ""
    port: int = _PORT
    #: Path of a unix socket; '' for a network address.
    socket: str = ""
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    sentinels: tuple[tuple[str, int], ...] = ()
    master_name: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    def redis_options(self) -> dict[str, Any]:
        """Keyword arguments of a redis-py connection to this Redis; of one to a Sentinel's master all but where."""
        options: dict[str, Any] = {"db": self.database, **_credentials(self.username, self.password)}
        if self.socket:
            options["path"] = self.socket
        elif not self.sentinels:
            options |= {"host": self.host, "port": self.port}
        return {**options, **self.tls_options()}

    def sentinel_options(self) -> dict[str, Any]:
        """Keyword arguments of a redis-py connection to one of the Sentinels."""
        login = _credentials(self.sentinel_username, self.sentinel_password)
        # One that is away must not hold up the way to the others.
        bounds = {"socket_connect_timeout": _SENTINEL_SECONDS, "socket_timeout": _SENTINEL_SECONDS}
        return {**bounds, **login, **({"ssl": True} if self.tls else {}), **self.tls_options()}

    def tls_options(self) -> dict[str, Any]:
        """What redis-py and kombu both call the options of TLS; empty without it."""
        if self.tls is None:
            return {}
        files = (("ssl_ca_certs", self.tls.ca_file), ("ssl_certfile", self.tls.cert_file))
        given = {name: value for name, value in (*files, ("ssl_keyfile", self.tls.key_file)) if value}
        return {
            "ssl_cert_reqs": ssl.CERT_REQUIRED if self.tls.verify else ssl.CERT_NONE,
            "ssl_check_hostname": self.tls.verify and self.tls.check_hostname,
            **given,
        }

    @property
    def broker_url(self) -> str:
        """The address for kombu, each part as kombu reads it; TLS goes into ``broker_use_ssl``."""
        login = _login(self.username, self.password)
        if self.socket:
            # kombu unquotes the path, and takes the user's part for a host.
            return f"redis+socket://{login}{quote(self.socket)}?virtual_host={self.database}"
        if self.sentinels:
            hosts = (f"sentinel://{login}{_bracket(host)}:{port}/{self.database}" for host, port in self.sentinels)
            return ";".join(hosts)
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}://{login}{_bracket(self.host)}:{self.port}/{self.database}"

    @property
    def broker_options(self) -> dict[str, Any]:
        """Celery's ``broker_transport_options`` of this address."""
        if not self.sentinels:
            return {}
        return {"master_name": self.master_name, "sentinel_kwargs": self.sentinel_options()}

    @property
    def shown(self) -> str:
        """The address for a log or a message: no password."""
        if self.socket:
            return f"unix://{self.socket} (database {self.database})"
        if self.sentinels:
            hosts = ", ".join(f"{_bracket(host)}:{port}" for host, port in self.sentinels)
            return f"master '{self.master_name}' of the Sentinels {hosts} (database {self.database})"
        return f"{'rediss' if self.tls else 'redis'}://{_bracket(self.host)}:{self.port}/{self.database}"


@functools.lru_cache(maxsize=64)
def parse_redis(value: str) -> RedisAddress:
    """Return what an address means. Raises ``ValueError``, which never repeats a password."""
    address = value.strip()
    # kombu's name of a socket, as older installations have it.
    for old, new in (("redis+socket://", "unix://"), ("rediss+sentinel://", "sentinels://")):
        if address.startswith(old):
            address = new + address.removeprefix(old)
    scheme, separator, rest = address.partition("://")
    scheme = scheme.lower()
    if "cluster" in scheme:
        raise ValueError("names a Redis Cluster, which is not supported (queues need one server, or Sentinel)")
    if not separator or scheme not in _SCHEMES:
        raise ValueError(_ALLOWED)
    if "#" in rest:
        raise ValueError("holds a '#'; write it as %23")
    try:
        split = urlsplit(f"x://{rest}")
        login, _, hosts = split.netloc.rpartition("@")
        options = dict(parse_qsl(split.query, keep_blank_values=True, strict_parsing=bool(split.query)))
    except ValueError:
        raise ValueError(_ALLOWED) from None
    unknown = sorted(set(options) - set(_OPTIONS[scheme]))
    if unknown:
        known = ", ".join(_OPTIONS[scheme])
        named = {name for names in _OPTIONS.values() for name in names}
        # What nobody takes may be the rest of a password with an unescaped '?': it is not repeated.
        shown = f"the option '{unknown[0]}'" if unknown[0] in named else "an option"
        raise ValueError(f"has {shown} that {scheme}:// does not take; it takes {known} (a '?' in a password is %3F)")
    username, password = _split_login(login)
    common: dict[str, Any] = {"username": username, "password": password}
    if scheme == "unix":
        return _socket(split.path, hosts, options, common)
    common["database"] = _database(split.path.strip("/"), options)
    if scheme in ("rediss", "sentinels"):
        common["tls"] = _tls(options)
    if scheme in ("sentinel", "sentinels"):
        return _sentinel(hosts, options, common)
    if "," in hosts or ";" in rest:
        raise ValueError("names several servers; for a Sentinel's master write sentinel://")
    host, port = _host_and_port(hosts or "localhost", _PORT)
    return RedisAddress(host=host, port=port, **common)


def _socket(path: str, hosts: str, options: dict[str, str], common: dict[str, Any]) -> RedisAddress:
    if hosts or not path.strip("/"):
        raise ValueError(f"{_ALLOWED}; the path of a socket is absolute: unix:/// has three slashes")
    number = options.get("db", options.get("virtual_host", "")).strip("/")
    if {"db", "virtual_host"} <= set(options) and options["db"] != options["virtual_host"].strip("/"):
        raise ValueError("gives two numbers of the database, db and virtual_host")
    return RedisAddress(socket=unquote(path), database=_number_of_database(number), **common)


def _sentinel(hosts: str, options: dict[str, str], common: dict[str, Any]) -> RedisAddress:
    master = options.get("master_name", "")
    if not master:
        raise ValueError("names Sentinels but no master; add ?master_name=NAME, as the Sentinels call it")
    found = tuple(_host_and_port(each, _SENTINEL_PORT) for each in hosts.split(",") if each)
    if not found:
        raise ValueError(_ALLOWED)
    return RedisAddress(
        sentinels=found,
        master_name=master,
        sentinel_username=options.get("sentinel_username") or None,
        sentinel_password=options.get("sentinel_password") or None,
        **common,
    )


def _tls(options: dict[str, str]) -> Tls:
    wanted = options.get("ssl_cert_reqs", "required").lower()
    if wanted not in _VERIFY:
        raise ValueError("has an ssl_cert_reqs other than 'required' and 'none'")
    check = options.get("ssl_check_hostname", "true").lower()
    if check not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError("has an ssl_check_hostname other than 'true' and 'false'")
    files = {name: options.get(name) for name in _TLS_FILES}
    for name, file in files.items():
        if file is not None and not Path(file).is_file():
            raise ValueError(f"names a file in {name} that does not exist")
    return Tls(_VERIFY[wanted], check in ("true", "1", "yes"), *files.values())


def _split_login(login: str) -> tuple[str | None, str | None]:
    if not login:
        return None, None
    user, separator, password = login.partition(":")
    if not separator:
        raise ValueError("has a user without a password; a password alone is written :PASSWORD@")
    return unquote(user) or None, unquote(password) or None


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    """Take ``host[:port]`` apart; an IPv6 address stands in brackets."""
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        if rest and not rest.startswith(":"):
            raise ValueError(_ALLOWED)
        port = rest[1:]
        host = f"[{host}]"
    elif ":" in text:
        host, _, port = text.rpartition(":")
        if ":" in host:
            raise ValueError("has an IPv6 address without brackets")
    try:
        name = parse_host(host)
    except ValueError:
        raise ValueError(_ALLOWED) from None
    if port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65_536):
        raise ValueError("has a port that is not a number from 1 to 65535")
    return name.lower(), int(port) if port else default


def _database(path: str, options: dict[str, str]) -> int:
    if path and "db" in options and path != options["db"]:
        raise ValueError("gives two numbers of the database, in the path and as db")
    return _number_of_database(path or options.get("db", ""))


def _number_of_database(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) <= _MAX_DATABASE):
        raise ValueError("has a database that is not a number")
    return int(text)


def _credentials(username: str | None, password: str | None) -> dict[str, Any]:
    return {name: value for name, value in (("username", username), ("password", password)) if value is not None}


def _login(username: str | None, password: str | None) -> str:
    if username is None and password is None:
        return ""
    return f"{quote(username or '', safe='')}:{quote(password or '', safe='')}@"


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
