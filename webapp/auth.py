"""Who asks, and whether he may. Attached where blueprints are registered (``create_app``)."""

from flask import Blueprint, Flask, g, request
from flask_sock import Sock

from store.keys import ANONYMOUS, Principal, Right
from webapp import errors
from webapp.services import services

#: The blueprint that flask-sock keeps its routes in.
_SOCK_BLUEPRINT = "__flask_sock"


class Guard:
    """Registers blueprints on an application, each with the right that its views ask for."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._rights: dict[str, Right | None] = {}
        app.before_request(self._check)

    def register(self, blueprint: Blueprint, right: Right) -> None:
        """Let only keys with ``right`` in."""
        self._add(blueprint, right)

    def register_public(self, blueprint: Blueprint) -> None:
        """Let everybody in, without a key."""
        self._add(blueprint, None)

    def register_socket(self, sock: Sock) -> None:
        """Let everybody open a WebSocket; its view authenticates before it does anything."""
        self._rights[_SOCK_BLUEPRINT] = None
        sock.init_app(self._app)

    def _add(self, blueprint: Blueprint, right: Right | None) -> None:
        self._rights[blueprint.name] = right
        self._app.register_blueprint(blueprint)

    def _check(self) -> None:
        if request.url_rule is None:
            # No such path or method: the same answer for everybody.
            return
        # A view that nobody registered here is nobody's: only a key with every right enters.
        right = self._rights.get(request.blueprint or "", Right.ADMIN)
        if right is None:
            return
        principal = authenticate()
        if not principal.may(right):
            raise errors.forbidden(right.value)
        g.principal = principal


def principal() -> Principal:
    """Whose request this is."""
    own: Principal = g.principal
    return own


def authenticate() -> Principal:
    """Return whose request this is. Raises ``ApiError`` (401)."""
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
