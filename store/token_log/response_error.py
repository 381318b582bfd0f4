"""The error of a response that failed, in the words of OpenAI's Responses API."""

from typing import Any


def response_error(error: dict[str, Any]) -> dict[str, str]:
    """Return the member ``error`` of a response for an error of the other shape (``message``, ``type``, ``param``)."""
    code = "server_error" if error.get("type") == "server_error" else "invalid_prompt"
    field, message = error.get("param"), str(error.get("message"))
    return {"code": code, "message": message if not field or field in message else f"{field}: {message}"}
