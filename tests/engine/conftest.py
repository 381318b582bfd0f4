"""One worker for the session, on real vLLM: the demo model on both engines, and an adapter."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from settings import ROOT
from testing.stack import KEY, Stack
from tests.conftest import require

_DEMO = {"model_path": str(ROOT / "models" / "demo"), "max_model_len": 8192, "enforce_eager": True}
REAL_MODELS = {
    "default": "demo",
    "models": {
        "demo": {**_DEMO, "kv_cache_memory_bytes": 2**28},
        # The synchronous engine; its KV cache is too small for the context, so the ladder has to help.
        "stepped": {
            **_DEMO,
            "engine": "cuda-vllm",
            "kvCacheMemoryBytes": 2**22,
            "promptFormat": "raw",
            "enableLora": True,
            "maxLoraRank": 8,
        },
    },
}


@pytest.fixture(scope="session")
def adapters_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one real adapter, ``loud``, whose weights are large enough to change every answer."""
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(ROOT / "models" / "demo")
    model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    model.save_pretrained(root / "loud")
    # One whose weights are missing: an engine that met it in a step would die of it.
    (root / "broken").mkdir()
    shutil.copy(root / "loud" / "adapter_config.json", root / "broken")
    return root


@contextmanager
def serving(folder: Path, models: dict[str, Any], **env: str) -> Iterator[Stack]:
    """A front door and one worker that serves all of ``models`` on real vLLM; the first one is the default."""
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    stack = Stack(folder, {"default": next(iter(models)), "models": models}, env=env)
    try:
        stack.start_web()
        stack.start_worker("w1", ["--models", ",".join(models)], seconds=280)
        yield stack
    finally:
        stack.close()


@pytest.fixture
def raw(stack: Stack) -> Iterator[httpx.Client]:
    """A client of ``/v1`` with the right key, of the module's ``stack``."""
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=stack.openai_base, headers=headers, trust_env=False, timeout=60) as opened:
        yield opened


@pytest.fixture(scope="session")
def real_stack(tmp_path_factory: pytest.TempPathFactory, adapters_root: Path) -> Iterator[Stack]:
    """Front door and one worker on real vLLM."""
    stack = Stack(tmp_path_factory.mktemp("real"), REAL_MODELS, env={"CY_LLM_ADAPTERS_ROOT": str(adapters_root)})
    try:
        stack.start_web()
        stack.start_worker("real", ["--models", "demo,stepped"], seconds=180)
        yield stack
    finally:
        stack.close()
