"""How each API of ``/v1`` tells an error in the middle of a stream."""

import json

from flask import Flask

from store.token_log.outcomes import Code, Failure
from webapp.openai.dialects import AnthropicDialect, OpenAIDialect, ResponsesDialect, Skipping

ERROR = {"error": {"message": "no such form", "type": "invalid_request_error", "param": "text", "code": None}}
WORKERS_ERROR = b"event: error\ndata: " + json.dumps(ERROR).encode() + b"\n\n"
LOST = Failure(Code.INSUFFICIENT_RESOURCES, "The worker was lost")


def event(name: str, **members: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **members})}\n\n".encode()


def data_of(events: bytes) -> dict[str, object]:
    found: dict[str, object] = json.loads(events.rpartition(b"data: ")[2])
    return found


def test_openai_s_streams_end_with_done() -> None:
    sent = OpenAIDialect().error(LOST)
    assert sent.endswith(b"\n\ndata: [DONE]\n\n")
    assert json.loads(sent.split(b"\n\n")[0].removeprefix(b"data: "))["error"]["message"] == "The worker was lost"


def test_an_error_behind_other_events_is_anthropic_s() -> None:
    before = event("content_block_delta", index=0)
    with Flask(__name__).test_request_context():
        sent = AnthropicDialect().pass_on(before + WORKERS_ERROR)
        assert sent.startswith(before)
        found = data_of(sent)
        assert (found["type"], set(found)) == ("error", {"type", "error", "request_id"})
        assert found["error"] == {"type": "invalid_request_error", "message": "text: no such form"}
        assert data_of(AnthropicDialect().error(LOST))["error"] == {
            "type": "overloaded_error",
            "message": "The worker was lost",
        }


def test_a_response_fails_with_its_own_id_and_the_next_number() -> None:
    dialect = ResponsesDialect()
    dialect.pass_on(event("response.created", response={"id": "resp_1", "status": "in_progress"}))
    sent = dialect.pass_on(event("response.in_progress") + event("x") + WORKERS_ERROR)
    found = data_of(sent)
    assert (found["type"], found["sequence_number"]) == ("response.failed", 3)
    assert found["response"] == {
        "id": "resp_1",
        "status": "failed",
        "error": {"code": "invalid_prompt", "message": "text: no such form"},
    }
    lost = data_of(dialect.error(LOST))
    assert lost["response"]["error"] == {"code": "server_error", "message": "The worker was lost"}  # type: ignore[index]


def test_what_has_come_is_left_out_wherever_it_was_cut() -> None:
    events = [event("x", number=number) for number in range(4)]
    for received in range(6):
        dialect = Skipping(OpenAIDialect(), received)
        sent = dialect.pass_on(events[0] + events[1]) + dialect.pass_on(events[2]) + dialect.pass_on(events[3])
        assert sent == b"".join(events[received:])
    # Who has had the error is not told it again.
    dialect = Skipping(OpenAIDialect(), 6)
    assert b"".join(map(dialect.pass_on, events)) + dialect.error(LOST) == b""
