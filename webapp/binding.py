"""Which addresses the front door listens on. Without any key, only this machine may come in."""

import ipaddress
import logging

from settings import Settings
from store import db
from store.keys import KeyRing

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"


class OpenToTheNetwork(Exception):
    """No key exists, yet the address is reachable from other machines."""


def addresses(settings: Settings) -> list[str]:
    """Return ``host:port`` for both APIs. Raises ``OpenToTheNetwork``."""
    host = host_of(settings)
    return [f"{host}:{settings.port}", f"{host}:{settings.openai_port}"]


def host_of(settings: Settings) -> str:
    """Return the address to listen on. Raises ``OpenToTheNetwork``."""
    configured = KeyRing(settings, db.sessions(db.connect(settings.database_url))).configured()
    host = settings.host or ("0.0.0.0" if configured else _LOOPBACK)
    if not configured:
        if not _is_loopback(host):
            raise OpenToTheNetwork(
                f"CY_LLM_HOST={host} is reachable from other machines, but no API key is configured: "
                "set CY_LLM_API_KEY, or leave CY_LLM_HOST unset to listen on this machine only"
            )
        log.warning("No API key is configured: every request is let in, so only %s is listened on", host)
    return host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
