"""Ask the demo model with plain transformers, to look at a build without the service."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def answer(model_path: Path, question: str, max_new_tokens: int = 400, temperature: float = 0.0) -> str:
    """Return the model's answer to one user message; ``temperature`` 0 is greedy."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    sampling = {"do_sample": True, "temperature": temperature, "top_p": 0.95} if temperature else {"do_sample": False}
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, **sampling)
    return str(tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True))
