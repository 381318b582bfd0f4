"""The product as a Procfile starts it, on real vLLM, with every face and a training worker."""

import shutil
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from settings import ROOT
from testing.stack import KEY, Stack
from testing.waiting import until
from tests.conftest import require

#: What a stream may pause beside what others do. Wanted is one second; a CI machine runs two test files on two cores.
MAX_GAP_SECONDS = 5.0

MODELS = {
    "default": "demo",
    "models": {
        "demo": {
            "modelPath": str(ROOT / "models" / "demo"),
            "maxModelLen": 8192,
            "kvCacheMemoryBytes": 2**28,
            "enforceEager": True,
            "enableLora": True,
            "maxLoras": 2,
            "maxLoraRank": 8,
        },
        "assistant": "demo",
        "org/assistant": "demo",
        "tpl": {"modelPath": "tpl", "engine": "fake", "enableLora": True},
    },
}


def make_adapter(folder: Path, seed: int) -> None:
    """Write a LoRA adapter of the demo model whose weights change every answer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(ROOT / "models" / "demo")
    model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Front door, gRPC, one gpu-infer and one gpu-train worker; adapters ``h1`` to ``h6`` placed by hand."""
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    folder = tmp_path_factory.mktemp("product")
    adapters, data = folder / "adapters", folder / "data"
    data.mkdir()
    make_adapter(adapters / "h1", 1)
    make_adapter(adapters / "other", 2)
    for number in range(2, 7):
        shutil.copytree(adapters / "h1", adapters / f"h{number}")
    shutil.copytree(ROOT / "models" / "demo", folder / "stack" / "tpl")
    stack = Stack(
        folder / "stack",
        MODELS,
        env={
            "CY_LLM_ADAPTERS_ROOT": str(adapters),
            "CY_LLM_DATA_ROOTS": str(data),
            "CY_LLM_OUTPUTS_ROOT": str(folder / "outputs"),
            "CY_LLM_VAR": str(folder / "var"),
            "CY_LLM_KEEPALIVE_SECONDS": "0.2",
        },
    )
    try:
        stack.start_web()
        stack.start_grpc()
        stack.start_worker("real", ["--models", "demo"], seconds=240)
        stack.start_trainer()
        yield stack
    finally:
        stack.close()


@pytest.fixture
def data(product: Stack) -> Path:
    """The folder of data sets."""
    return Path(product.env["CY_LLM_DATA_ROOTS"])


@pytest.fixture
def adapters(product: Stack) -> Path:
    """The folder of adapters."""
    return Path(product.env["CY_LLM_ADAPTERS_ROOT"])


class Client:
    """Both APIs, by hand: the bytes that a client would send."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.native = f"http://127.0.0.1:{stack.port}"
        self.openai = f"http://127.0.0.1:{stack.openai_port}"
        self._http = httpx.Client(timeout=120, trust_env=False, headers={"Authorization": f"Bearer {KEY}"})

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        return self._http.request(method, url, **options)

    def post(
        self, path: str, body: bytes | str | dict[str, Any], native: bool = True, **headers: str
    ) -> httpx.Response:
        """POST a body as it is (or as JSON) to a path of one port."""
        url = (self.native if native else self.openai) + path
        content = None if isinstance(body, dict) else body
        json = body if isinstance(body, dict) else None
        return self._http.post(url, content=content, json=json, headers={"Content-Type": "application/json", **headers})

    def infer(self, **values: Any) -> httpx.Response:
        return self.post("/api/v1/inference", {"modelId": "demo", "prompt": "x", **values})

    def chat(self, **values: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "x"}]
        body = {"model": "demo", "max_tokens": 4, "messages": messages, **values}
        return self.post("/v1/chat/completions", body, native=False)

    def train(self, dataset: str, **values: Any) -> httpx.Response:
        name = values.pop("name", "case")
        body = {"baseModel": "demo", "datasetPath": dataset, "outputDir": name, "adapterName": name, **values}
        body.setdefault("hyperParams", {"epochs": 1, "loraRank": 8})
        return self.post("/api/v1/training/start", body)

    def finish(self, job_id: str, seconds: float = 180) -> dict[str, Any]:
        """Wait until a job has ended; return it."""

        def ended() -> dict[str, Any] | None:
            job = self.request("GET", f"{self.native}/api/v1/training/status/{job_id}").json()
            return job if job["status"] in ("completed", "failed", "cancelled") else None

        return until(ended, seconds, f"job {job_id} ends")

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def client(product: Stack) -> Iterator[Client]:
    made = Client(product)
    yield made
    made.close()


class BackgroundStream:
    """A stream that runs beside what a test does, and the gaps between its chunks. Seconds."""

    def __init__(self, stack: Stack) -> None:
        self.gaps: list[float] = []
        self._client = Client(stack)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "BackgroundStream":
        self._thread.start()
        until(lambda: len(self.gaps) > 5, 30, "the stream runs")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        self._client.close()
        print(f"longest gap {self.longest:.3f} s in {len(self.gaps)} chunks")

    @property
    def longest(self) -> float:
        return max(self.gaps[1:])

    def _run(self) -> None:
        messages = [{"role": "user", "content": "x"}]
        body = {"model": "demo", "stream": True, "max_tokens": 8000, "ignore_eos": True, "messages": messages}
        url = f"{self._client.openai}/v1/chat/completions"
        with self._client._http.stream("POST", url, json=body) as stream:
            last = time.monotonic()
            for line in stream.iter_lines():
                if line.startswith("data: {"):
                    self.gaps.append(time.monotonic() - last)
                    last = time.monotonic()
                if self._stop.is_set():
                    return


def details(response: httpx.Response) -> list[dict[str, str]]:
    """The details of a native error."""
    assert response.status_code == 400, response.text
    found: list[dict[str, str]] = response.json()["error"]["details"]
    return found
