"""``cy-llm chat``."""

import click

from cli.client import ServerClient


@click.command()
@click.argument("question", required=False)
@click.option("--model", default="default", show_default=True)
@click.option("--adapter", help="An adapter's name, or name@version.")
def chat(question: str | None, model: str, adapter: str | None) -> None:
    """Ask one QUESTION, or talk until an empty line."""
    server = ServerClient.from_settings()
    messages: list[dict[str, str]] = []
    while True:
        asked = question or click.prompt("you", default="", show_default=False)
        if not asked:
            return
        messages.append({"role": "user", "content": asked})
        answer = ""
        for text in server.chat(adapter or model, messages):
            answer += text
            click.echo(text, nl=False)
        click.echo()
        if question:
            return
        messages.append({"role": "assistant", "content": answer})
