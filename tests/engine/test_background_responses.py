"""Responses in the background: asked for, ended, read on, and made by another worker where one dies."""

import os
import signal
from collections.abc import Iterator

import openai
import pytest
from openai.types.responses import Response

from testing import tool_model
from testing.stack import Stack
from testing.tool_model import transcripts
from testing.waiting import until
from tests.engine.conftest import serving
from tests.engine.response_words import asked, words

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with serving(tmp_path_factory.mktemp("background"), {"tools": tool_model.ENTRY}) as stack:
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with stack.openai() as opened:
        yield opened


_LONG = asked(transcripts.STORY, max_output_tokens=3500, extra_body={"ignore_eos": True})


def ended(client: openai.OpenAI, response_id: str) -> Response:
    return until(
        lambda: (found := client.responses.retrieve(response_id)).status not in ("queued", "in_progress") and found,
        60,
        "it has come to its end",
    )


def test_in_the_background_it_goes_on_without_its_client(client: openai.OpenAI) -> None:
    usual = client.responses.create(**asked(transcripts.STORY))
    begun = client.responses.create(**asked(transcripts.STORY), background=True)
    assert begun.status in ("queued", "in_progress") and begun.background and begun.output == []
    done = ended(client, begun.id)
    assert done.status == "completed" and done.background and words(done) == words(usual)
    assert done.usage == usual.usage and done.id == begun.id
    # An answer that is there is what ending it comes to.
    assert client.responses.cancel(begun.id).status == "completed"
    follow_on = client.responses.create(**asked("hm", previous_response_id=begun.id))
    assert follow_on.previous_response_id == begun.id


def test_in_the_background_it_can_be_ended(stack: Stack, client: openai.OpenAI) -> None:
    begun = client.responses.create(**_LONG, background=True)
    until(lambda: client.responses.retrieve(begun.id).status == "in_progress", 20, "it is begun")
    assert client.responses.cancel(begun.id).status == "cancelled"
    assert client.responses.cancel(begun.id).status == client.responses.retrieve(begun.id).status == "cancelled"
    until(lambda: stack.fleet().living[0].in_flight == 0, 5, "nobody works for it")
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(**asked("hm", previous_response_id=begun.id))
    assert raised.value.param == "previous_response_id"


def test_a_stream_in_the_background_goes_on_when_its_client_leaves(client: openai.OpenAI) -> None:
    usual = client.responses.create(**asked(transcripts.STORY))
    with client.responses.create(**asked(transcripts.STORY), background=True, stream=True) as stream:
        events = iter(stream)
        seen = [next(events) for _ in range(6)]
    begun = seen[0].response  # type: ignore[union-attr]
    assert begun.background
    done = ended(client, begun.id)
    assert done.status == "completed" and done.background and words(done) == words(usual)
    last = seen[-1].sequence_number
    rest = list(client.responses.retrieve(begun.id, stream=True, starting_after=last))
    assert rest[0].sequence_number == last + 1 and rest[-1].type == "response.completed"
    assert rest[-1].response.background


def test_in_the_background_it_outlives_its_worker(stack: Stack, client: openai.OpenAI) -> None:
    """Whoever asks how far it is has it gone on with."""
    begun = client.responses.create(**_LONG, background=True)
    until(lambda: client.responses.retrieve(begun.id).status == "in_progress", 20, "it is begun")
    [worker] = [process for process in stack.processes if process.name == "w1"]
    os.kill(worker.pid, signal.SIGKILL)
    stack.start_worker("w2", ["--models", "tools"], seconds=180)
    done = ended(client, begun.id)
    assert done.status == "incomplete" and done.usage is not None and done.usage.output_tokens == 3500
    [(last, _)] = stack.client.xrevrange(f"cy:log:gen-{begun.id.partition('_')[2]}", count=1)
    assert last.startswith(b"2-"), "it was struck after its end"
