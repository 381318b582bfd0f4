"""Who asks, and whether he may. Attached where blueprints are registered (``create_app``)."""

from flask import Blueprint, g, request

from store.keys import ANONYMOUS, Principal, Right
from webapp import errors
from webapp.services import services


def protect(blueprint: Blueprint, right: Right) -> Blueprint:
    """Let only keys with ``right`` into the views of ``blueprint``."""

    def check() -> None:
        principal = _authenticate()
        if not principal.may(right):
            raise errors.forbidden(right.value)
        g.principal = principal

    blueprint.before_request(check)
    return blueprint


def public(blueprint: Blueprint) -> Blueprint:
    """Mark the views of ``blueprint`` as open to all; a test insists on one or the other."""
    return blueprint


def principal() -> Principal:
    """Whose request this is."""
    own: Principal = g.principal
    return own


def _authenticate() -> Principal:
    keys = services().keys
    token = _token()
    if token is not None:
        found = keys.authenticate(token)
        if found is not None:
            return found
    if not keys.configured():
        return ANONYMOUS
    raise errors.unauthorized()


def _token() -> str | None:
    """The key of the request: ``X-API-Key``, else ``Authorization: Bearer``."""
    if key := request.headers.get("X-API-Key"):
        return key
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
