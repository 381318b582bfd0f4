"""Addresses to listen on: IPv4, IPv6 (with or without brackets), or a name."""

import ipaddress
import re
import socket

_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?\Z")
_ALL_OCTETS = re.compile(r"[0-9.]+\Z")


def parse_host(value: str) -> str:
    """Return an address or name as sockets want it: no brackets. Raises ``ValueError``."""
    host = value.strip()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ValueError(_ALLOWED)
    if ":" in host or _ALL_OCTETS.match(host):
        try:
            return str(ipaddress.ip_address(host))
        except ValueError:
            raise ValueError(_ALLOWED) from None
    if not _NAME.match(host):
        raise ValueError(_ALLOWED)
    return host


_ALLOWED = "must be an IPv4 or IPv6 address or a host name, without scheme and port (the ports have variables)"


def join(host: str, port: int) -> str:
    """Return ``host:port``; an IPv6 address gets its brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def reachable(host: str) -> str:
    """Return where a client on this machine finds what listens on ``host``; '' is all addresses."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host or "127.0.0.1"
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"


def listens(host: str, port: int) -> bool:
    """Whether somebody listens on a port of this machine, where a client of ``host`` finds it ('' is anywhere)."""
    try:
        with socket.create_connection((reachable(host), port), timeout=0.5):
            return True
    except OSError:
        return False
