"""Which scope each blueprint asks for. Attached where blueprints are registered (``create_app``)."""

from collections.abc import Iterable

from flask import Blueprint, Flask, g, request
from flask_sock import Sock

from store.principal import Principal, Scope
from text import clean_token
from webapp.http.current import services

#: The blueprint that flask-sock keeps its routes in.
_SOCK_BLUEPRINT = "__flask_sock"


class BlueprintGuard:
    """Registers blueprints on an application, each with the scope that its views ask for."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._scopes: dict[str, Scope | None] = {}
        app.before_request(self._check)

    def register(self, blueprint: Blueprint, scope: Scope) -> None:
        """Let only keys with ``scope`` in."""
        self._add(blueprint, scope)

    def register_public(self, blueprint: Blueprint) -> None:
        """Let everybody in, without a key."""
        self._add(blueprint, None)

    def register_socket(self, sock: Sock) -> None:
        """Let everybody open a WebSocket; its view authenticates before it does anything."""
        self._scopes[_SOCK_BLUEPRINT] = None
        sock.init_app(self._app)

    def _add(self, blueprint: Blueprint, scope: Scope | None) -> None:
        self._scopes[blueprint.name] = scope
        self._app.register_blueprint(blueprint)

    def _check(self) -> None:
        if request.url_rule is None:
            # No such path or method: the same answer for everybody.
            return
        # A view that nobody registered here is nobody's: only an operator's key enters.
        scope = self._scopes.get(request.blueprint or "", Scope.ADMIN)
        if scope is None:
            return
        g.principal = authenticate()
        services().access.require_scope(g.principal, scope)


def authenticate() -> Principal:
    """Return whose call this is. Raises ``Unauthenticated``."""
    return services().access.authenticate(*tokens())


def tokens() -> list[str]:
    """The keys of the call, in the order in which they are tried.

    A proxy may add one of its own, and an SDK may send a placeholder beside the right one.
    """
    headers = request.headers
    return keys_of([headers.get("X-API-Key"), headers.get("Api-Key")], headers.get("Authorization"))


def keys_of(plain: Iterable[str | None], authorization: str | None) -> list[str]:
    """Return the keys out of the headers that may carry one: ``X-API-Key``, Azure's ``api-key``, ``Bearer``."""
    scheme, _, rest = clean_token(authorization or "").partition(" ")
    bearer = rest if scheme.lower() == "bearer" else ""
    return [key for key in (clean_token(each or "") for each in (*plain, bearer)) if key]
