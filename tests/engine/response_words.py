"""What the tests of responses ask, and what of the answers they compare."""

import json
from typing import Any

from openai.types.responses import Response


def asked(given: Any, **more: Any) -> dict[str, Any]:
    return {"model": "tools", "input": given, "temperature": 0, "max_output_tokens": 600, **more}


def words(response: Response) -> list[Any]:
    """What a response says, without what every run makes anew."""
    found: list[Any] = []
    for item in response.output:
        if item.type == "reasoning":
            found.append(("reasoning", "".join(part.text for part in item.content or []).strip(), None))
        elif item.type == "message":
            text = "".join(part.text for part in item.content if part.type == "output_text")
            found.append(("message", text.strip(), item.status))
        elif item.type == "function_call":
            found.append((item.name, json.loads(item.arguments), item.status))
    return found
