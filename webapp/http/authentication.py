"""Which scope each blueprint asks for. Attached where blueprints are registered (``create_app``)."""

from flask import Blueprint, Flask, g, request
from flask_sock import Sock

from store.sql.api_keys import Principal, Scope
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
    return services().access.authenticate(token())


def token() -> str | None:
    """The key of the call: ``X-API-Key``, else ``Authorization: Bearer``."""
    return bearer(request.headers.get("X-API-Key"), request.headers.get("Authorization"))


def bearer(api_key: str | None, authorization: str | None) -> str | None:
    """Choose the key out of the two headers that may carry one."""
    if api_key:
        return api_key
    scheme, _, rest = (authorization or "").partition(" ")
    return rest.strip() if scheme.lower() == "bearer" and rest.strip() else None
