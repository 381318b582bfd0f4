"""Token limits as clients meet them: through both HTTP faces, gRPC and batches, and as their pages show them."""

import json
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from testing.stack import Stack
from testing.waiting import until
from tests.conftest import FAKE_MODELS

#: Within this a change of a key is seen everywhere. Seconds.
SOON = 6


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two processes of the front door, a worker, and who books."""
    stack = Stack(tmp_path_factory.mktemp("tokens"), FAKE_MODELS, env={"CY_LLM_KEEPALIVE_SECONDS": "0.5"})
    try:
        stack.start_worker("w1", ["--models", "fake,slow,tiny"])
        stack.start_web(CY_LLM_WEB_WORKERS="2")
        stack.spawn_background()
        yield stack
    finally:
        stack.close()


class Keyed:
    """A key of a tenant of its own."""

    def __init__(self, stack: Stack, **wanted: Any) -> None:
        self.stack = stack
        self.tenant = wanted.pop("tenant", f"tenant-{secrets.token_hex(4)}")
        with stack.http() as http:
            answer = http.post(
                "/keys", json={"name": secrets.token_hex(4), "tenant": self.tenant, "scopes": ["inference"], **wanted}
            )
        assert answer.status_code == 201, answer.text
        self.made = answer.json()
        self.key: str = self.made["key"]

    def ask(self, tokens: int | None = 3, prompt: str = "one two three", model: str = "fake") -> httpx.Response:
        generation = {} if tokens is None else {"maxNewTokens": tokens}
        body = {"modelId": model, "prompt": prompt, "generation": generation}
        with self.http() as http:
            return http.post("/inference", json=body)

    def chat(self, tokens: int | None = 3, **more: Any) -> httpx.Response:
        body = {"model": "fake", "messages": [{"role": "user", "content": "one two three"}], **more}
        if tokens is not None:
            body["max_tokens"] = tokens
        with self.http() as http:
            return http.post(f"{self.stack.openai_base}/chat/completions", json=body)

    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=f"{self.stack.base}/api/v1", headers=headers, timeout=60, trust_env=False)

    def own(self) -> dict[str, Any]:
        with self.http() as http:
            found: dict[str, Any] = http.get("/key").json()
        return found

    def change(self, **values: Any) -> None:
        with self.stack.http() as http:
            answer = http.patch(f"/keys/{self.made['id']}", json=values)
        assert answer.status_code == 200, answer.text

    def spend(self, tokens: int) -> None:
        """Use up so many tokens, prompt and answer, by asking."""
        answer = self.ask(tokens)
        assert answer.status_code == 200, answer.text


Make = Callable[..., Keyed]


@pytest.fixture
def make(stack: Stack) -> Make:
    return lambda **wanted: Keyed(stack, **wanted)


def kinds(answer: httpx.Response) -> list[str]:
    return [detail["type"] for detail in answer.json()["error"]["details"]]


def test_a_small_key_gets_an_answer_that_is_cut_at_its_limit(make: Make) -> None:
    """The reserve that locks out small keys; D05. The second port, and a maximum that is too large."""
    for each in ("ask", "chat"):
        key = make(tokensPerMinute=100)
        answer = getattr(key, each)(None)
        assert answer.status_code == 200, answer.text
        usage = answer.json()["usage"]
        made = usage.get("completionTokens", usage.get("completion_tokens"))
        # 100 less the prompt's estimate: 13 letters, the word "user" in a chat, and what a template adds.
        assert made == (80 if each == "ask" else 79)
        refused = getattr(make(tokensPerMinute=100), each)(200)
        assert refused.status_code == 400
        message = refused.json()["error"]["message"]
        assert "may use 100 tokens a minute" in message
        assert "200 of the answer" in message


def test_twenty_at_once_over_both_processes(make: Make) -> None:
    key = make(tokensPerMinute=1000)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda number: key.ask(200) if number % 2 else key.chat(200), range(20)))
    passed = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(passed) + len(refused) == 20
    # 220 are set aside for each; what one did not use lets no sixth in before that minute is over.
    assert 1 <= len(passed) <= 5
    for answer in refused:
        assert int(answer.headers["Retry-After"]) >= 1
        assert "x-should-retry" not in answer.headers


def test_headers_tell_what_is_left(make: Make) -> None:
    key = make(tokensPerMinute=10_000)
    left = []
    for _ in range(3):
        headers = key.chat(100).headers
        assert headers["x-ratelimit-limit-tokens"] == "10000"
        assert headers["x-ratelimit-reset-tokens"]
        left.append(int(headers["x-ratelimit-remaining-tokens"]))
    assert 10_000 > left[0] > left[1] > left[2] > 0


def test_a_quota_from_its_first_token_to_its_last(stack: Stack, make: Make) -> None:
    key = make(quota={"tokens": 1000, "per": "day"})
    assert key.made["quota"] == {"tokens": 1000, "per": "day"}
    for _ in range(3):
        key.spend(200)
    [use] = key.own()["used"]
    spent = use["quota"]["used"]
    assert 600 <= spent < 700
    assert use["quota"]["remaining"] == 1000 - spent
    # 300 left, and a longer answer wished for: the client asks for less.
    refused = key.ask(500)
    assert (refused.status_code, kinds(refused)) == (429, ["token_quota"])
    assert refused.headers["x-should-retry"] == "false"
    assert int(refused.headers["Retry-After"]) <= 86_400
    message = refused.json()["error"]["message"]
    assert f"has used {spent}" in message
    assert use["quota"]["renewsAt"] in message
    key.spend(200)
    # The number of the page of usage.
    until(lambda: key_usage(key) > spent, 20, "the fourth request is booked")
    assert key.own()["used"][0]["quota"]["used"] == key_usage(key)
    # OpenAI's own client does not try again.
    with (
        openai.OpenAI(api_key=key.key, base_url=stack.openai_base, max_retries=3) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x"}], max_tokens=500)
    assert caught.value.type == "insufficient_quota"
    assert caught.value.code == "insufficient_quota"


def key_usage(key: Keyed) -> int:
    with key.http() as http:
        total: int = http.get("/usage").json()["total"]["totalTokens"]
    return total


def test_a_raised_a_taken_and_a_reset_quota(stack: Stack, make: Make) -> None:
    key = make(quota={"tokens": 300, "per": "month"})
    key.spend(200)
    assert key.ask(200).status_code == 429
    key.change(quota={"tokens": 600, "per": "month"})
    until(lambda: key.ask(200).status_code == 200, SOON, "more is allowed")
    assert key.ask(300).status_code == 429
    key.change(quota={"tokens": 600, "per": "month"})
    assert key.ask(300).status_code == 429
    with stack.http() as http:
        assert http.post(f"/keys/{key.made['id']}/reset").status_code == 200
    until(lambda: key.ask(300).status_code == 200, SOON, "the count began anew")
    key.change(quota=None)
    until(lambda: key.ask(1000).status_code == 200, SOON, "no quota any more")
    until(lambda: key.own()["used"] == [], SOON, "the other process sees it too")


@pytest.mark.full
def test_a_quota_renews_when_its_period_ends(make: Make) -> None:
    """The key's own and its tenant's; D02. A minute is the shortest period."""
    key = make(quota={"tokens": 300, "per": "minute"})
    until(lambda: key.ask(200).status_code == 200 and key.ask(200).status_code == 429, 65, "one fits, and no other")
    until(lambda: key.ask(200).status_code == 200, 65, "the next minute")


def test_a_quota_that_is_added_later_counts_this_period(make: Make) -> None:
    key = make()
    key.spend(500)
    until(lambda: key_usage(key) >= 500, 20, "it is booked")
    key.change(quota={"tokens": 600, "per": "month"})
    until(lambda: key.own()["quota"] is not None, SOON, "the quota is seen")
    refused = key.ask(200)
    assert (refused.status_code, kinds(refused)) == (429, ["token_quota"])


def test_the_tenants_quota_is_shared_by_its_keys(stack: Stack, make: Make) -> None:
    one = make()
    other = make(tenant=one.tenant)
    with stack.http() as http:
        body = {"quota": {"tokens": 400, "per": "day"}, "tokensPerMinute": 100_000}
        answer = http.patch(f"/tenants/{one.tenant}", json=body)
        assert (answer.json()["quota"], answer.json()["tokensPerMinute"]) == ({"tokens": 400, "per": "day"}, 100_000)
    until(lambda: one.own()["tenantLimits"]["quota"] is not None, SOON, "the quota is seen")
    one.spend(300)
    refused = other.ask(200)
    assert (refused.status_code, kinds(refused)) == (429, ["token_quota"])
    assert f"Tenant '{one.tenant}' may use 400/day" in refused.json()["error"]["message"]
    # A stranger is not its business.
    assert make().ask(200).status_code == 200


def test_fifty_that_fail_or_are_cut_leave_nothing_set_aside(make: Make) -> None:
    key = make(tokensPerMinute=100_000)

    def cut(number: int) -> None:
        if number % 3 == 0:
            assert key.ask(5, model="unknown").status_code == 404
            return
        if number % 3 == 1:
            assert key.ask(5, prompt="x " * 9000, model="tiny").status_code == 400
            return
        body = {"modelId": "slow", "prompt": "p", "generation": {"maxNewTokens": 200}}
        with key.http() as http, http.stream("POST", "/inference/stream", json=body) as stream:
            next(line for line in stream.iter_lines() if line.startswith("data:"))

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(cut, range(50)))
    until(lambda: key.own()["used"][0]["reserved"] == 0, 20, "nothing is set aside any more")


def test_a_flushed_redis_counts_on(stack: Stack, make: Make) -> None:
    key = make(quota={"tokens": 500, "per": "day"})
    key.spend(300)
    until(lambda: key_usage(key) >= 300, 20, "it is booked")
    stack.client.flushall()
    refused = key.ask(300)
    assert refused.status_code in (429, 503), refused.text
    until(lambda: key.ask(300).status_code == 429, 20, "the worker is known again, and the quota counts on")
    key.spend(100)


def test_a_batch_ends_its_lines_where_the_quota_does(stack: Stack, make: Make) -> None:
    key = make(quota={"tokens": 300, "per": "day"})
    chat = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "max_tokens": 60}
    common = {"method": "POST", "url": "/v1/chat/completions", "body": chat}
    lines = [json.dumps({"custom_id": str(number), **common}) for number in range(10)]
    with openai.OpenAI(api_key=key.key, base_url=stack.openai_base) as client:
        file = client.files.create(file=("b.jsonl", "\n".join(lines).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        until(lambda: client.batches.retrieve(batch.id).status == "completed", 60, "the batch ends")
        counts = client.batches.retrieve(batch.id).request_counts
    assert counts is not None
    used = key_usage(key)
    assert used <= 300
    assert counts.completed >= 3
    assert counts.completed + counts.failed == 10


@pytest.mark.parametrize(
    ("quota", "field"),
    [
        ({"tokens": -1, "per": "day"}, "quota.tokens"),
        ({"tokens": 5, "per": "fortnight"}, "quota.per"),
        ({"tokens": 5}, "quota.per"),
        ("5/day", "quota"),
        ({"tokens": 1.5, "per": "day"}, "quota.tokens"),
    ],
)
def test_quotas_that_are_none(stack: Stack, quota: Any, field: str) -> None:
    with stack.http() as http:
        answer = http.post("/keys", json={"name": secrets.token_hex(4), "quota": quota})
    assert answer.status_code == 400
    assert answer.json()["error"]["details"][0]["field"] == field
