"""What a face knows of a call, handed down with it: services never look it up."""

from collections.abc import Callable
from dataclasses import dataclass

from services.limits import Allowance
from services.token_limits import TokenAllowance
from store.principal import Principal


def _still_there() -> bool:
    return False


def _nothing() -> None:
    """There is nobody to tell."""


def _ignore(_: str) -> None:
    """There is nobody to tell."""


def _forget(_: Allowance) -> None:
    """There is nobody to tell."""


def _forget_tokens(_: TokenAllowance) -> None:
    """There is nobody to tell."""


@dataclass(frozen=True)
class RequestContext:
    """One call of one client, whatever it came through."""

    principal: Principal
    #: What is called, as the face names it (an HTTP path): an idempotency key holds for one operation.
    operation: str = ""
    #: '' where the client gave none.
    idempotency_key: str = ""
    #: The trace that the call belongs to; '' where the client told none.
    trace_id: str = ""
    #: How long the client would wait, in seconds; the system's own bound holds in any case.
    timeout: float | None = None
    #: Tells whether the client has left. Called from the thread that follows the request.
    disconnected: Callable[[], bool] = _still_there
    #: Called with a model that has to be loaded first, before the request is sent.
    on_model_loading: Callable[[str], None] = _ignore
    #: Called with what the key may still send, where there is a limit.
    on_counted: Callable[[Allowance], None] = _forget
    #: The same of tokens.
    on_tokens_counted: Callable[[TokenAllowance], None] = _forget_tokens
    #: Called once the request is on its way: nothing but waiting follows.
    on_submitted: Callable[[], None] = _nothing
