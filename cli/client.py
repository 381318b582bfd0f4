"""The APIs of a running server, for the commands."""

import json
from collections.abc import Iterator
from typing import Any

import click
import httpx

from configuration.listen_address import join, reachable
from settings import Settings
from text import clean_token, decode


class ServerClient:
    """The native and the OpenAI-compatible API of one server."""

    def __init__(self, url: str, openai_url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A proxy of the environment is for other hosts: the server is this machine.
        self._http = httpx.Client(headers=headers, timeout=httpx.Timeout(30, read=600), trust_env=False)
        self._url, self._openai_url = url.rstrip("/"), openai_url.rstrip("/")

    @classmethod
    def from_settings(cls) -> "ServerClient":
        """The server of this machine, with the key of the environment or the one that ``bin/serve`` made."""
        settings = Settings.from_env_or_exit()
        key_file = settings.var / "api_key"
        try:
            key = settings.api_key or (clean_token(decode(key_file.read_bytes())) if key_file.exists() else "")
        except (OSError, ValueError) as error:
            raise click.ClickException(f"the key in {key_file} cannot be read: {error}") from None
        host = reachable(settings.host)
        return cls(f"http://{join(host, settings.port)}", f"http://{join(host, settings.openai_port)}", key)

    def close(self) -> None:
        """End the connections; a command that ends does so too."""
        self._http.close()

    def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Return a JSON answer of the native API. Raises ``click.ClickException`` with the server's words."""
        answer: dict[str, Any] = self._request(method, path, **options).json()
        return answer

    def text(self, method: str, path: str, *, root: bool = False, **options: Any) -> str:
        """As :meth:`call`, of an answer that is text; ``root``: of a path outside the API."""
        return self._request(method, path, "" if root else "/api/v1", **options).text

    def _request(self, method: str, path: str, below: str = "/api/v1", **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, f"{self._url}{below}{path}", **options)
        except httpx.HTTPError as error:
            raise _no_answer(self._url, error) from error
        _require_success(response)
        return response

    def chat(self, model: str, messages: list[dict[str, str]]) -> Iterator[str]:
        """Yield the text of an answer as it comes."""
        body = {"model": model, "messages": messages, "stream": True, "temperature": 0, "max_tokens": 512}
        try:
            with self._http.stream("POST", f"{self._openai_url}/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    _require_success(response)
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        chunk = json.loads(line[6:])
                        if "error" in chunk:
                            raise click.ClickException(chunk["error"]["message"])
                        for choice in chunk["choices"]:
                            yield choice["delta"].get("content") or ""
        except httpx.HTTPError as error:
            raise _no_answer(self._openai_url, error) from error


def _no_answer(url: str, error: httpx.HTTPError) -> click.ClickException:
    return click.ClickException(f"{url} does not answer ({error}); is bin/serve running?")


def _require_success(response: httpx.Response) -> None:
    if response.status_code < 400:
        return
    try:
        error = response.json()["error"]
        lines = [error["message"], *(detail["description"] for detail in error.get("details", []))]
    except (ValueError, KeyError, TypeError):
        lines = [f"the server answered {response.status_code}"]
    raise click.ClickException("\n  ".join(dict.fromkeys(lines)))
