"""``cy-llm completion``: what a shell needs to complete commands."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what completes commands in SHELL: put  eval "$(bin/cy-llm completion bash)"  into its start file."""
    found = get_completion_class(shell)
    assert found is not None
    root = context.find_root()
    click.echo(found(root.command, {}, "cy-llm", "_CY_LLM_COMPLETE").source())
