"""One round: streams on the real engine, a fault in their middle, and what each client got."""

import random
import threading
from typing import Any

from settings import ROOT
from testing.faults.client import Client, Outcome
from testing.faults.kinds import Fault, Fleet
from testing.waiting import until

MODELS = {
    "demo": {
        "model_path": str(ROOT / "models" / "demo"),
        "max_model_len": 8192,
        "kv_cache_memory_bytes": 2**28,
        "enforce_eager": True,
    }
}
#: Long answers, so that a fault strikes in the middle.
MAX_NEW_TOKENS = 600


def bodies(streams: int) -> list[dict[str, Any]]:
    """A different greedy text for each stream: the penalty steers it."""
    prompts = ("Tell me the story of the library", "讲一个图书馆的故事")
    return [
        {
            "modelId": "demo",
            "prompt": prompts[number % 2],
            "generation": {
                "temperature": 0,
                "maxNewTokens": MAX_NEW_TOKENS,
                "repetitionPenalty": round(1.0 + 0.01 * number, 2),
            },
        }
        for number in range(streams)
    ]


def run_round(fleet: Fleet, row: Fault, streams: int, rng: random.Random, restore: bool = True) -> list[Outcome]:
    """Run the streams, strike at a random moment, wait for all ends, mend."""
    clients = [Client(fleet.stack, body) for body in bodies(streams)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    until(lambda: sum(bool(client.outcome.offsets) for client in clients) >= streams * 3 // 4, 60, "streams run")
    threading.Event().wait(rng.uniform(0.0, 0.5))
    row.inject(fleet)
    for thread in threads:
        thread.join()
    if restore:
        row.restore(fleet)
    return [client.outcome for client in clients]
