"""Which runs of a worker are stopped because nobody follows them."""

from types import SimpleNamespace
from typing import Any

import pytest

from store.redis.request_records import RequestRecord
from tasks.worker.inference.active_requests import UNFOLLOWED_SECONDS, ActiveRequest


@pytest.mark.parametrize(("detached", "stopped"), [(False, True), (True, False)])
def test_who_goes_on_without_a_client_is_not_missed(detached: bool, stopped: bool) -> None:
    record = RequestRecord.openai(
        id="gen-1", model="m", owner="o", tenant="t", deadline=0.0, path="/v1/responses", body=b"{}", detached=detached
    )
    writer: Any = SimpleNamespace(followers=0)
    active = ActiveRequest(record, writer, task=None)  # type: ignore[arg-type]
    assert not active.unfollowed(100.0) and not active.unfollowed(99.0 + UNFOLLOWED_SECONDS)
    assert active.unfollowed(100.0 + UNFOLLOWED_SECONDS) == stopped
    writer.followers = 1
    assert not active.unfollowed(200.0 + UNFOLLOWED_SECONDS)
