"""How many tokens a sample has, by the base model's own tokenizer and chat template."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from engines.training.datasets.formats import Sample

#: Files that :class:`TokenCounter` reads.
_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]


def tokenizer_folder(model: str, download: bool) -> Path:
    """Return the folder of a model's tokenizer: the model's own, or where the hub's files lie on this host.

    ``download`` gets them from the hub where they do not. Raises ``FileNotFoundError``.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(model, allow_patterns=_FILES, local_files_only=not download))
    except (OSError, ValueError, HfHubHTTPError) as error:
        # A folder of another host, no name of a model, not in the cache, no network.
        raise FileNotFoundError(f"this host has no tokenizer of {model}: {type(error).__name__}") from error


class TokenCounter:
    """Counts with ``tokenizer.json`` and the chat template of a model folder; needs no torch."""

    def __init__(self, folder: Path) -> None:
        """Raises ``OSError`` where the folder has no tokenizer that can be read without its library."""
        self._folder = folder
        if not (folder / "tokenizer.json").is_file():
            raise FileNotFoundError(f"{folder.name} has no tokenizer.json")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    @cached_property
    def _template(self) -> Template | None:
        # As transformers renders it: the sandbox, and lines of control blocks leave no white space.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        path = self._folder / "chat_template.jinja"
        if path.is_file():
            return environment.from_string(path.read_text(encoding="utf-8"))
        config = self._folder / "tokenizer_config.json"
        text = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
        return environment.from_string(text) if isinstance(text, str) else None

    @property
    def has_template(self) -> bool:
        return self._template is not None

    def count(self, sample: Sample) -> int:
        """Tokens of the longest sequence that the sample makes."""
        if "text" in sample:
            return self._tokens(sample["text"])
        endings = [sample[name] for name in ("completion", "chosen", "rejected") if name in sample]
        return max(self._pair(sample["prompt"], ending) for ending in endings)

    def _pair(self, prompt: Any, ending: Any) -> int:
        if isinstance(prompt, str) and isinstance(ending, str):
            # With the end-of-sequence token that the trainer adds.
            return self._tokens(prompt) + self._tokens(ending) + 1
        return self._tokens(self._render([*_as_messages(prompt, "user"), *_as_messages(ending, "assistant")]))

    def _render(self, messages: list[dict[str, str]]) -> str:
        if self._template is None:
            return "".join(message["content"] for message in messages)
        return self._template.render(messages=messages, add_generation_prompt=False)

    def _tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _as_messages(value: Any, role: str) -> list[dict[str, str]]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]
