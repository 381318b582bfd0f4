"""Texts and conversations as tokens, and what a model says of its own sampling and template."""

from collections.abc import Mapping
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.renderers.params import ChatParams, TokenizeParams
from vllm.sampling_params import StructuredOutputsParams

#: Text is tokenized as it is: the chat template brings the special tokens, and the
#: length is checked by the caller, with a message that names the field.
_TOKENIZE = TokenizeParams(max_total_tokens=None, add_special_tokens=False)


_TOKENIZE_RAW = TokenizeParams(max_total_tokens=None, add_special_tokens=True)


async def tokenize_chat(client: EngineClient, messages: list[Any], template: str | None = None) -> list[int]:
    """Return the tokens of a conversation, through the chat template, as vLLM's own chat endpoint makes them."""
    parameters = ChatParams(chat_template=template, chat_template_kwargs={"add_generation_prompt": True})
    _, prompts = await client.renderer.render_chat_async([messages], parameters, _TOKENIZE)
    ids: list[int] = prompts[0]["prompt_token_ids"]
    return ids


async def tokenize_text(client: EngineClient, prompt: str) -> list[int]:
    """Return the tokens of a plain text, as vLLM's completion endpoint makes them."""
    prompts = await client.renderer.render_cmpl_async([{"prompt": prompt}], _TOKENIZE_RAW)
    ids: list[int] = prompts[0]["prompt_token_ids"]
    return ids


def form_of(response_format: Mapping[str, Any] | None) -> StructuredOutputsParams | None:
    """Return what OpenAI's ``response_format`` asks of the engine; None for plain text. Raises ``ValueError``."""
    match (response_format or {}).get("type", "text"):
        case "json_object":
            return StructuredOutputsParams(json_object=True)
        case "json_schema":
            assert response_format is not None
            return StructuredOutputsParams(json=response_format["json_schema"]["schema"])
    return None


def has_chat_template(client: EngineClient) -> bool:
    return bool(getattr(client.renderer.tokenizer, "chat_template", None))


def default_sampling_params(client: EngineClient) -> dict[str, Any]:
    """Return what the model's ``generation_config.json`` says of sampling, where the engine was told to heed it."""
    found = client.model_config.get_diff_sampling_param()
    return {name: value for name, value in found.items() if name != "max_tokens"}
