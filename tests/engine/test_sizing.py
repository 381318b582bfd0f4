"""``cy-llm diagnose`` against what vLLM itself makes of the models that we have."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from engines.model_spec import ModelSpec
from engines.sizing import CannotSize, describe, fit, read_folder, sizes_of
from settings import ROOT
from tests.conftest import require

DEMO = ROOT / "models" / "demo"
_KV_BYTES = 2**24
#: vLLM in one process, where its model can be looked at.
_SCRIPT = """
import json, os, sys
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
from vllm import LLM
import vllm.model_executor.model_loader.base_loader as loader
packed, weights = loader.process_weights_after_loading, {}
def count_first(model, *rest):
    # On a CPU they are packed anew afterwards, out of torch's sight.
    weights.update((p.data_ptr(), p.numel() * p.element_size()) for p in model.parameters())
    return packed(model, *rest)
loader.process_weights_after_loading = count_first
if __name__ == "__main__":
    llm = LLM(sys.argv[1], enforce_eager=True, kv_cache_memory_bytes=int(sys.argv[2]), max_model_len=512)
    cache = llm.llm_engine.vllm_config.cache_config
    tokens = cache.num_gpu_blocks * cache.block_size
    print("RESULT " + json.dumps({"weights": sum(weights.values()), "tokens": tokens, "block": cache.block_size}))
"""


@pytest.mark.timeout(300)
def test_weights_and_kv_cache_are_vllm_s_own(tmp_path: Path) -> None:
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    script = tmp_path / "measure.py"
    script.write_text(_SCRIPT)
    command = [sys.executable, str(script), str(DEMO), str(_KV_BYTES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")] or [done.stderr[-2000:]]
    measured = json.loads(line.removeprefix("RESULT "))
    spec = ModelSpec(id="demo", model_path="demo", location=str(DEMO), max_model_len=512)
    sizes = sizes_of(spec, *read_folder(DEMO))
    assert sizes.weights == measured["weights"]
    # The cache is cut into blocks: a part of one is left over.
    assert 0 <= _KV_BYTES // sizes.kv_per_token - measured["tokens"] < measured["block"]


def test_what_fits_grows_with_the_card_and_shrinks_with_the_context() -> None:
    config = {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    config |= {"intermediate_size": 18944, "vocab_size": 152064, "max_position_embeddings": 32768, "dtype": "bfloat16"}
    spec = ModelSpec(id="m", model_path="m")
    # Qwen2.5-7B: 7.6 billion parameters; 2 (keys, values) x 28 layers x 4 heads x 128 x 2 bytes.
    sizes = sizes_of(spec, config, 15_231_233_024)
    assert sizes.kv_per_token == 57344
    small, middle, large = (fit(sizes, spec, memory * 10**9) for memory in (16, 24, 80))
    assert small.tokens == 0 and 0 < middle.tokens < large.tokens
    assert large.context == 32768 and large.batch >= 20
    halved = sizes_of(ModelSpec(id="m", model_path="m", kv_cache_dtype="fp8", tensor_parallel_size=2), config, 2**34)
    assert halved.kv_per_token == 57344 // 4 and halved.weights == 2**33
    adapted = sizes_of(ModelSpec(id="m", model_path="m", enable_lora=True, max_loras=8), config, 2**34)
    assert adapted.adapters > 10**9


def test_half_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((DEMO / "config.json").read_bytes())
    with pytest.raises(CannotSize, match="holds no"):
        read_folder(tmp_path)
    whole = (DEMO / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CannotSize, match="half a file"):
        read_folder(tmp_path)
    assert describe(ModelSpec(id="m", model_path="m", location=str(tmp_path))) == ""
    assert "KiB a token" in describe(ModelSpec(id="m", model_path="m", location=str(DEMO)))


def test_the_command(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([ROOT / "bin" / "cy-llm", "diagnose", *arguments], capture_output=True, text=True)

    shown = run("demo")
    assert shown.returncode == 0 and "H100" in shown.stdout and "KiB a token" in shown.stdout
    found = json.loads(run("demo", "--memory", "0.5", "--json").stdout)
    assert found["cards"]["yours (0.5 GB)"]["tokens"] == 0
    assert "not configured" in run("nothing").stderr
