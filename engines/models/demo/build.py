"""Train the demo model: a real Qwen2 architecture of two million parameters, on the CPU."""

import logging
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import SFTConfig, SFTTrainer

from engines.models.demo.corpus import Conversation, conversations, read_topics
from engines.models.demo.tokenizer import train_tokenizer

log = logging.getLogger(__name__)

#: Positions the rotary embedding is declared for; answers in the corpus end long before.
MAX_POSITIONS = 8192
VOCAB_SIZE = 1536
#: Training conversations are cut here; the longest answer takes about 300 tokens.
MAX_TRAINED_TOKENS = 512


def build(corpus: Path, target: Path, rounds: int, epochs: float) -> None:
    """Train on ``corpus`` and write weights (bfloat16), tokenizer and configs to ``target``."""
    torch.manual_seed(0)
    samples = list(conversations(read_topics(corpus), rounds=rounds))
    texts = [message["content"] for sample in samples for message in sample]
    tokenizer = train_tokenizer(texts, VOCAB_SIZE, MAX_POSITIONS)
    model = Qwen2ForCausalLM(_architecture(tokenizer))
    log.info("%d conversations, %.2f M parameters", len(samples), model.num_parameters() / 1e6)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=_training_arguments(scratch, epochs),
            train_dataset=Dataset.from_list([_prompt_completion(sample) for sample in samples]),
            processing_class=tokenizer,
        )
        trainer.train()
    _save(model, tokenizer, target)


def _architecture(tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=480,
        num_hidden_layers=5,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id,
    )


def _training_arguments(scratch: str, epochs: float) -> SFTConfig:
    return SFTConfig(
        output_dir=scratch,
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.05,
        max_length=MAX_TRAINED_TOKENS,
        train_sampling_strategy="group_by_length",
        gradient_checkpointing=False,
        logging_steps=50,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        seed=0,
    )


def _prompt_completion(sample: Conversation) -> dict[str, Conversation]:
    """Only the last answer is learned; what stands before it is context."""
    return {"prompt": sample[:-1], "completion": sample[-1:]}


def _save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, target: Path) -> None:
    # The generation config holds no sampling defaults: the request's own are the only ones.
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
