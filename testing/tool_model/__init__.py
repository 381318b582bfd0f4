"""A small model that thinks, talks and calls tools, for tests of what is made of that.

Greedily it writes thoughts, a sentence and then two calls, with not one token left to chance. Its weights are here;
``python -m testing.tool_model`` makes them anew from :mod:`testing.tool_model.transcripts`.
"""

from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "weights"
#: Its entry in a model file.
ENTRY: dict[str, Any] = {
    "modelPath": str(PATH),
    "toolCallParser": "hermes",
    "reasoningParser": "qwen3",
    "enforceEager": True,
    "kvCacheMemoryBytes": 2**27,
}
