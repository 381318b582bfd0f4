"""Who may do what, and who sees what: the one place that decides it."""

from collections.abc import Iterable

from services.errors import ModelNotAllowed, PermissionDenied, Unauthenticated
from store.principal import ANONYMOUS, Principal, Scope
from store.sql.authenticator import ApiKeyAuthenticator
from text import clean_token

#: A scope that holds another one's rights too.
_IMPLIED = {Scope.OPENAI: (Scope.OPENAI, Scope.INFERENCE)}


class Access:
    """Authentication and authorization of one process."""

    def __init__(self, keys: ApiKeyAuthenticator) -> None:
        self._keys = keys

    def authenticate(self, *tokens: str | None) -> Principal:
        """Return whose the first valid token is; everybody's while no key is configured. Raises ``Unauthenticated``."""
        for token in tokens:
            # White space around a key can only be a mistake.
            principal = self._keys.authenticate(clean_token(token)) if token else None
            if principal is not None:
                return principal
        if not self._keys.configured():
            return ANONYMOUS
        raise Unauthenticated

    def owner(self, principal_id: str, tenant: str) -> Principal:
        """Return whose work it is that goes on behind its call; it may not go on where the key was revoked."""
        found = self._keys.find(principal_id)
        return found or Principal(principal_id, principal_id, frozenset(), tenant, revocable=True)

    def needs_key(self) -> bool:
        """Whether a call without a key is refused."""
        return self._keys.configured()

    def require_scope(self, principal: Principal, scope: Scope) -> None:
        """Raises ``PermissionDenied``."""
        if not self.has_scope(principal, scope):
            raise PermissionDenied(scope.value)

    @staticmethod
    def has_scope(principal: Principal, scope: Scope) -> bool:
        return any(principal.has_scope(held) for held in _IMPLIED.get(scope, (scope,)))

    @staticmethod
    def may_use(principal: Principal, names: Iterable[str]) -> bool:
        """Whether the principal may ask for a model, or an adapter, of one of these names."""
        return principal.models is None or not principal.models.isdisjoint(names)

    @staticmethod
    def require_model(principal: Principal, asked: str, names: Iterable[str], field: str) -> None:
        """As :meth:`may_use`, of what was asked for in ``field``. Raises ``ModelNotAllowed``."""
        if not Access.may_use(principal, (asked, *names)):
            raise ModelNotAllowed(asked, principal.models or (), field)

    def current(self, principal: Principal) -> Principal:
        """Return the principal with what its key allows by now: seen within ``authenticator.CACHE_SECONDS``.

        Raises ``Unauthenticated`` when it was revoked since, has ended, or its tenant is blocked.
        """
        found = self._keys.current(principal)
        if found is None:
            raise Unauthenticated
        return found

    def require_active(self, principal: Principal) -> None:
        """As :meth:`current`."""
        self.current(principal)

    def visible_tenant(self, principal: Principal) -> str | None:
        """Return whose things the principal sees; None is everybody's."""
        return None if principal.has_scope(Scope.ADMIN) else principal.tenant

    def can_see(self, principal: Principal, tenant: str) -> bool:
        """Whether a thing of that tenant exists for the principal."""
        return self.visible_tenant(principal) in (None, tenant)
