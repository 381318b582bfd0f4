"""vLLM's own OpenAI-compatible application, and its parsers of arguments."""

from collections.abc import Mapping
from typing import Any, NoReturn

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.lora.request import LoRARequest
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser


class WrongArgument(Exception):
    """What vLLM's parser of arguments would end the process with; it does not name the argument."""


class _RaisingParser(FlexibleArgumentParser):
    def error(self, message: str) -> NoReturn:
        # "argument --max-num-seqs: invalid int value: 'x'"
        raise WrongArgument(message.partition(": ")[2] if message.startswith("argument ") else message)


def engine_argument_parser() -> FlexibleArgumentParser:
    """Return vLLM's parser of its engine's arguments; what is wrong raises ``WrongArgument``.

    The table of its options (``_actions``) is what knows their names; argparse has no other way to ask.
    """
    return AsyncEngineArgs.add_cli_args(_RaisingParser(add_help=False))


def known_parsers() -> dict[str, list[str]]:
    """Return the names of the parsers of tool calls and of reasoning, by their keys in the model file."""
    return {
        "tool_call_parser": sorted(ToolParserManager.list_registered()),
        "reasoning_parser": sorted(ReasoningParserManager.list_registered()),
    }


async def build_openai_app(client: EngineClient, options: Mapping[str, str | None]) -> Any:
    """Return vLLM's own OpenAI-compatible ASGI application on a running engine; its server is not opened.

    ``options`` are those of ``vllm serve``, without their dashes; None is one that takes no value.
    """
    parser = make_arg_parser(FlexibleArgumentParser())
    words = [f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()]
    arguments = parser.parse_args(words)
    tasks = await client.get_supported_tasks()
    app = build_app(arguments, tasks, client.model_config)
    # Cross-origin rules and HTTP metrics belong to who listens on a port: not here, and every chunk pays for them.
    app.user_middleware.clear()
    await init_app_state(client, app.state, arguments, tasks)
    return app


def name_adapter(app: Any, name: str, adapter: LoRARequest) -> None:
    """Let the application know a loaded adapter as a model; its own endpoint would load it once more."""
    app.state.openai_serving_models.lora_requests[name] = LoRARequest(name, adapter.lora_int_id, adapter.lora_path)
