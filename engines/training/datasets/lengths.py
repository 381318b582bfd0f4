"""How many tokens a sample has, by the base model's own tokenizer and chat template."""

from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from engines.training.datasets.formats import Sample

#: Files that :class:`TokenCounter` reads.
_FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
]


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


class TemplateRefusal(Exception):
    """The chat template cannot render a conversation; the message is the template's own, or names what it lacks."""


class TokenCounter:
    """Counts with the tokenizer and the chat template of a model folder, by transformers itself; needs no torch."""

    def __init__(self, folder: Path) -> None:
        """Raises ``OSError`` where the folder has no tokenizer that can be read without its library."""
        if not (folder / "tokenizer.json").is_file():
            raise FileNotFoundError(f"{folder.name} has no tokenizer.json")
        try:
            # Late, and in the check's own process or the trainer's: the front door starts without it.
            from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast
        except ImportError as error:
            raise FileNotFoundError("transformers is not installed on this host") from error
        try:
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:
            # Whatever the library makes of a file that it does not understand.
            raise FileNotFoundError(f"the tokenizer of {folder.name} cannot be read: {type(error).__name__}") from error
        self._encoder = self._tokenizer.backend_tokenizer

    @property
    def has_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def count(self, sample: Sample) -> int:
        """Tokens of the longest sequence that the sample makes. Raises ``TemplateRefusal``."""
        if "text" in sample:
            return self._tokens(sample["text"])
        endings = [sample[name] for name in ("completion", "chosen", "rejected") if name in sample]
        return max(self._pair(sample["prompt"], ending, sample.get("tools")) for ending in endings)

    def _pair(self, prompt: Any, ending: Any, tools: list[dict[str, Any]] | None) -> int:
        if isinstance(prompt, str) and isinstance(ending, str):
            # With the end-of-sequence token that the trainer adds.
            return self._tokens(prompt) + self._tokens(ending) + 1
        turns = [*_as_messages(prompt, "user"), *_as_messages(ending, "assistant")]
        written = self._render(turns, tools)
        if tools and not self._shows_tools(turns, tools, written):
            raise TemplateRefusal("it does not show tools, so a model could not learn when to call them")
        if any(turn.get("tool_calls") for turn in turns) and not self._shows_calls(turns, tools, written):
            raise TemplateRefusal("it does not show calls of tools, so a model could not learn to write them")
        return self._tokens(written)

    def _shows_tools(self, turns: list[dict[str, Any]], tools: list[dict[str, Any]], written: str) -> bool:
        return self._render(turns, None) != written

    def _shows_calls(self, turns: list[dict[str, Any]], tools: list[dict[str, Any]] | None, written: str) -> bool:
        without = [{name: value for name, value in turn.items() if name != "tool_calls"} for turn in turns]
        return self._render(without, tools) != written

    def _render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        if not self.has_template:
            return "".join(message["content"] for message in messages)
        try:
            return str(self._tokenizer.apply_chat_template(messages, tools=tools, tokenize=False))
        except (TemplateError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            # The template is the model's own program.
            raise TemplateRefusal(str(error) or type(error).__name__) from error

    def _tokens(self, text: str) -> int:
        return len(self._encoder.encode(text, add_special_tokens=False).ids)


def _as_messages(value: Any, role: str) -> list[dict[str, Any]]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]
