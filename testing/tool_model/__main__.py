"""``python -m testing.tool_model``: make the weights anew, on the CPU, in some minutes."""

import logging
import random

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from settings import ROOT
from testing.tool_model import PATH
from testing.tool_model.transcripts import TOOLS, answer, transcripts

log = logging.getLogger(__name__)

_ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
_STEPS, _BATCH, _RATE = 360, 12, 3e-3
#: ChatML; of tools the names alone, so that their schemas change nothing. ``enable_thinking`` as with Qwen3.
_TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\nTools:' }}{% for tool in tools %}{{ ' ' + tool.function.name }}{% endfor %}\
{{ '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content }}{% elif message.content %}{% for part in message.content %}\
{{ part.text }}{% endfor %}{% endif %}
{%- for call in message.tool_calls or [] %}{{ '<tool_call>' + call.function.name + '</tool_call>' }}{% endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""


def main() -> None:
    """Train, and write the folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "demo")
    tokenizer.add_tokens(_ADDED)
    tokenizer.chat_template = _TEMPLATE
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    log.info("%.2f M parameters", model.num_parameters() / 1e6)
    _train(model, [_sample(tokenizer, *each) for each in _dressed()])
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.to(torch.bfloat16).save_pretrained(PATH)
    tokenizer.save_pretrained(PATH)


def _dressed() -> list[tuple[list[dict[str, object]], bool, tuple[str, str], bool]]:
    rng = random.Random(1)
    return [(*each, rng.random() < 0.8) for each in transcripts(rounds=60)]


def _sample(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, object]],
    has_tools: bool,
    said: tuple[str, str],
    thinks: bool,
) -> tuple[list[int], int]:
    """Return the tokens of a conversation, and where the answer begins."""
    prompt = tokenizer.apply_chat_template(
        messages,
        tools=TOOLS if has_tools else None,
        add_generation_prompt=True,
        enable_thinking=thinks,
        tokenize=False,
    )
    begin: list[int] = tokenizer.encode(str(prompt))
    return [*begin, *tokenizer.encode(answer(*said, thinks) + "<|im_end|>")], len(begin)


def _train(model: Qwen2ForCausalLM, samples: list[tuple[list[int], int]]) -> None:
    rng = random.Random(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_STEPS, pct_start=0.1)
    model.train()
    for step in range(_STEPS):
        batch = rng.sample(samples, _BATCH)
        width = max(len(tokens) for tokens, _ in batch)
        ids = torch.zeros(_BATCH, width, dtype=torch.long)
        labels = torch.full((_BATCH, width), -100)
        mask = torch.zeros(_BATCH, width, dtype=torch.long)
        for row, (tokens, begin) in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, begin : len(tokens)] = ids[row, begin : len(tokens)]
            mask[row, : len(tokens)] = 1
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == _STEPS - 1:
            log.info("step %d: loss %.5f", step, loss.item())


if __name__ == "__main__":
    main()
