"""Which addresses the front door listens on. Without any key, only this machine may come in."""

import logging

from configuration.listen_address import is_loopback, join
from settings import Settings
from store.sql import db
from store.sql.authenticator import ApiKeyAuthenticator

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"


class InsecureBindError(Exception):
    """No key exists, yet the address is reachable from other machines."""


def addresses(settings: Settings) -> list[str]:
    """Return ``host:port`` for both APIs. Raises ``InsecureBindError``."""
    host = bind_host(settings)
    return [join(host, settings.port), join(host, settings.openai_port)]


def bind_host(settings: Settings) -> str:
    """Return the address to listen on. Raises ``InsecureBindError``."""
    configured = ApiKeyAuthenticator(settings, db.sessions(db.connect(settings.database_url))).configured()
    host = settings.host or ("0.0.0.0" if configured else _LOOPBACK)
    if not configured:
        if not is_loopback(host):
            raise InsecureBindError(
                f"CY_LLM_HOST={host} is reachable from other machines, but no API key is configured: "
                "set CY_LLM_API_KEY, or leave CY_LLM_HOST unset to listen on this machine only"
            )
        log.warning("No API key is configured: every request is let in, so only %s is listened on", host)
    return host
