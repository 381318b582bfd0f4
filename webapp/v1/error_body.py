"""The error envelope of ``/api/v1``."""

from typing import Any

from store.token_log.outcomes import Failure


def error_body(failure: Failure) -> dict[str, Any]:
    """As the interface document has it: code, message, details."""
    return {"error": failure.to_dict()}
