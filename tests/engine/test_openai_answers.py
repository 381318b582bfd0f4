"""What becomes of the errors of vLLM's application, by hand: its own are in OpenAI's words and in several places."""

import asyncio
import json
import warnings
from importlib.util import find_spec
from typing import Any

import pytest

from engines.types import HttpCall

pytestmark = pytest.mark.filterwarnings("ignore")

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (bin/test installs it)", allow_module_level=True)

with warnings.catch_warnings():
    # vLLM and torch warn of what they themselves use.
    warnings.simplefilter("ignore")
    from engines.vllm.form_check import FormCheck
    from engines.vllm.openai_answer import OpenAIAnswers

CALL = HttpCall("1", "/v1/chat/completions", b"{}")


def event(head: str, code: int) -> bytes:
    error = {"message": "no 'data: ' here", "type": "BadRequestError", "param": "stop", "code": code}
    return f"{head}data: {json.dumps({'error': error})}\n\n".encode()


def refusal(made: Any) -> tuple[int, dict[str, Any]]:
    """The status and the error of a refusal."""
    head, body = asyncio.run(made)
    return head.status, json.loads(body)["error"]


@pytest.mark.parametrize("head", ["", "event: error\n"], ids=["openai", "named"])
def test_a_stream_that_begins_with_an_error_is_a_refusal(head: str) -> None:
    """Whatever its text looks like."""
    status, error = refusal(OpenAIAnswers(FormCheck(None)).late_refusal(CALL, event(head, 422)))
    assert status == 422
    assert error == {"message": "no 'data: ' here", "type": "invalid_request_error", "param": "stop", "code": None}


def test_an_error_without_a_status_is_the_server_s() -> None:
    status, error = refusal(OpenAIAnswers(FormCheck(None)).late_refusal(CALL, event("", 0)))
    assert (status, error["type"]) == (500, "server_error")


@pytest.mark.parametrize("head", ["", "event: error\n"], ids=["openai", "named"])
def test_an_error_in_mid_stream_keeps_its_name(head: str) -> None:
    found = asyncio.run(OpenAIAnswers(FormCheck(None)).error_event(CALL, event(head, 400) + b"data: [DONE]\n\n"))
    first, rest = found.split(b"\n\n", 1)
    assert rest == b"data: [DONE]\n\n"
    assert first.startswith(f"{head}data: ".encode())
    assert json.loads(first.partition(b"data: ")[2])["error"]["message"] == "no 'data: ' here"
