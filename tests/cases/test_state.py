"""State that moves under the process."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from settings import ROOT
from testing.stack import Stack
from testing.waiting import until
from testing.websocket import receive, send, socket
from tests.cases.product import MAX_GAP_SECONDS, BackgroundStream, Client

pytestmark = pytest.mark.full


def test_16_events_of_an_ended_job(client: Client, product: Stack, data: Path) -> None:
    (data / "ended.jsonl").write_text('{"text": "a b c"}\n' * 20)
    job = client.train("ended.jsonl", hyperParams={"epochs": 500, "loraRank": 8}).json()["jobId"]
    client.post(f"/api/v1/training/cancel/{job}", {})
    url = f"{client.native}/api/v1/training/{job}/events"
    first = client.request("GET", url)
    assert first.text.rstrip().endswith("[DONE]")
    last = re.findall(r"^id: (\d+)$", first.text, re.MULTILINE)[-1]
    for after in (last, "999999999", "0"):
        started = time.monotonic()
        again = client.request("GET", url, headers={"Last-Event-ID": after})
        assert again.text.rstrip().endswith("[DONE]")
        assert time.monotonic() - started < 5
    with socket(product) as ws:
        assert receive(ws)["type"] == "ready"
        send(ws, "watch", jobId=job, lastEventId=last)
        assert receive(ws) == {"type": "done", "jobId": job}


def test_20_an_adapter_whose_folder_went_away(client: Client, product: Stack, adapters: Path) -> None:
    for number in range(1, 7):
        assert client.infer(adapter=f"h{number}", generation={"maxNewTokens": 2}).status_code == 200
    [worker] = product.fleet().living
    shutil.rmtree(adapters / "h1")
    gone = client.infer(adapter="h1")
    assert gone.status_code == 400, gone.text
    assert gone.json()["error"]["details"][0]["type"] == "adapter_not_found"
    for number in (2, 3, 4, 5, 6):
        assert client.infer(adapter=f"h{number}", generation={"maxNewTokens": 2}).status_code == 200
    assert client.infer().status_code == 200
    assert product.fleet().living[0].instance_id == worker.instance_id


def test_20_weights_that_were_replaced_are_served(client: Client, adapters: Path) -> None:
    greedy = {"maxNewTokens": 20, "temperature": 0.0}
    shutil.copytree(adapters / "h2", adapters / "moving")
    before = client.infer(adapter="moving", generation=greedy).json()["choices"][0]["text"]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(adapters / "other" / name, adapters / "moving" / name)
    after = client.infer(adapter="moving", generation=greedy).json()["choices"][0]["text"]
    assert after != before
    assert after == client.infer(adapter="other", generation=greedy).json()["choices"][0]["text"]


@pytest.mark.parametrize("harm", ["cut", "empty", "no config", "config of nothing", "folder of a file"])
def test_20_broken_adapters_cost_only_their_request(client: Client, product: Stack, adapters: Path, harm: str) -> None:
    folder = adapters / f"broken-{harm.replace(' ', '-')}"
    shutil.copytree(adapters / "other", folder)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if harm == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif harm == "empty":
        weights.write_bytes(b"")
    elif harm == "no config":
        config.unlink()
    elif harm == "config of nothing":
        config.write_text("{}")
    else:
        weights.unlink()
        weights.mkdir()
    [worker] = product.fleet().living
    refused = client.infer(adapter=folder.name)
    assert refused.status_code == 400, refused.text
    assert client.chat(model=folder.name).status_code in (400, 404)
    assert client.infer().status_code == 200
    assert product.fleet().living[0].instance_id == worker.instance_id


def test_25_redis_is_a_replica_for_a_moment(client: Client, product: Stack) -> None:
    processes = [process.pid for process in product.processes]
    [worker] = product.fleet().living
    product.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        time.sleep(1)
        away = client.infer()
        assert away.status_code == 503, away.text
        assert int(away.headers["Retry-After"]) > 0
        time.sleep(2)
    finally:
        product.client.execute_command("REPLICAOF", "NO", "ONE")
    until(lambda: client.infer().status_code == 200, 30, "it answers again")
    assert product.fleet().living[0].instance_id == worker.instance_id
    assert [p.pid for p in product.processes if p.popen.poll() is None] == processes


def test_41_a_long_conversation_pauses_no_stream(client: Client, product: Stack, data: Path) -> None:
    words = "lorem ipsum " * 30
    turns = [{"from": ("human", "gpt")[i % 2], "value": words} for i in range(2000)]
    (data / "long.jsonl").write_text(json.dumps({"conversations": turns}) + "\n")
    other = Client(product)
    with BackgroundStream(product) as stream:
        started = time.monotonic()
        answer = other.train("long.jsonl", longRows="drop")
        took = time.monotonic() - started
    other.close()
    print(f"checked in {took:.1f} s")
    # The only row is longer than maxSeqLength: nothing is left to train on, which is said.
    assert answer.status_code == 400, answer.text
    assert "every row is longer" in answer.text
    assert took < 30
    assert stream.longest < MAX_GAP_SECONDS


def test_52_scripts_declare_their_keys() -> None:
    """Redis-like servers with threads (Dragonfly) refuse a script whose keys they do not know beforehand."""
    scripts = [path.read_text() for path in (ROOT / "store").rglob("*.lua")]
    for folder in ("store", "services", "tasks"):
        for path in (ROOT / folder).rglob("*.py"):
            scripts += re.findall(r'^_[A-Z_]+ = """\n(.*?)"""', path.read_text(), re.MULTILINE | re.DOTALL)
    keys = [key for script in scripts for key in re.findall(r"redis\.p?call\('[A-Z]+',\s*([^,)]+)", script)]
    assert len(keys) > 15
    assert [key for key in keys if "ARGV" in key] == []
