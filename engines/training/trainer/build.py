"""From a specification to the trainer library's objects."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset as HfDataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from engines.training.datasets.lengths import TokenCounter, tokenizer_folder
from engines.training.datasets.load import Dataset, load_dataset
from engines.training.datasets.rows import whole
from engines.training.spec import HyperParams, LongRows, Lora, Method, TrainingSpec
from engines.training.trainer.callbacks import Reporter
from engines.training.trainer.errors import TrainingError
from engines.training.trainer.tool_rows import have_tools, tokenized

#: Whole checkpoints that are kept: the newest, and the one before it.
_KEPT_CHECKPOINTS = 2


def read_dataset(spec: TrainingSpec) -> Dataset:
    """Read the dataset again: it may have changed since the job was accepted. Raises ``DatasetError``."""
    for path in filter(None, (spec.dataset, spec.validation, spec.work_dir)):
        # The front door resolved it inside its root; it must not have become a link elsewhere since.
        if os.path.realpath(path) != path:
            raise whole("the dataset or the output folder was replaced by a link after the job was accepted")
    try:
        counter: TokenCounter | None = TokenCounter(tokenizer_folder(spec.base_model, download=True))
    except OSError:
        counter = None
    params = spec.params

    def load(path: str, eval_split: float) -> Dataset:
        return load_dataset(
            Path(path), spec.method, spec.dataset_format, counter, params.max_seq_length, spec.long_rows, eval_split
        )

    if not spec.validation:
        return load(spec.dataset, params.eval_split)
    return replace(load(spec.dataset, 0.0), evaluation=load(spec.validation, 0.0).train)


def make_trainer(spec: TrainingSpec, params: HyperParams, dataset: Dataset, reporter: Reporter) -> Any:
    """Return a trl trainer on the base model. ``params`` may have a smaller batch than the specification."""
    tokenizer = AutoTokenizer.from_pretrained(spec.base_model, trust_remote_code=False)
    model = load_model(spec)
    if spec.lora is not None:
        _require_modules(model, spec.lora.target_modules)
    lora = None
    if spec.lora is not None and spec.start_adapter:
        model = PeftModel.from_pretrained(model, spec.start_adapter, is_trainable=True)
    elif spec.lora is not None:
        lora = lora_config(spec.lora)
    train, evaluation = dataset.train, dataset.evaluation
    if have_tools(train) or have_tools(evaluation):
        limit = params.max_seq_length if spec.long_rows == LongRows.TRUNCATE else None
        train, evaluation = tokenized(train, tokenizer, limit), tokenized(evaluation, tokenizer, limit)
    common = {
        "model": model,
        "args": arguments(spec, params, bool(dataset.evaluation)),
        "train_dataset": HfDataset.from_list(train),
        "eval_dataset": HfDataset.from_list(evaluation) if evaluation else None,
        "processing_class": _with_padding(tokenizer),
        "peft_config": lora,
        "callbacks": [reporter],
    }
    return DPOTrainer(**common) if spec.method == Method.DPO else SFTTrainer(**common)


def arguments(spec: TrainingSpec, params: HyperParams, evaluates: bool) -> SFTConfig | DPOConfig:
    """Return the trainer library's arguments."""
    gpu = torch.cuda.is_available()
    half = half_precision()
    strategy = "epoch" if params.each_epoch else "steps"
    common: dict[str, Any] = {
        "output_dir": spec.work_dir,
        "per_device_train_batch_size": params.batch_size,
        "per_device_eval_batch_size": params.batch_size,
        "gradient_accumulation_steps": params.gradient_accumulation_steps,
        "learning_rate": params.learning_rate,
        "num_train_epochs": params.epochs,
        "max_length": params.max_seq_length if spec.long_rows == LongRows.TRUNCATE else None,
        # The library takes a number below one as a share of all steps.
        "warmup_steps": params.warmup_ratio,
        "weight_decay": params.weight_decay,
        "lr_scheduler_type": params.lr_scheduler,
        "seed": params.seed,
        "save_strategy": strategy,
        "save_steps": params.save_steps,
        "save_total_limit": _KEPT_CHECKPOINTS,
        "eval_strategy": strategy if evaluates else "no",
        "eval_steps": params.eval_steps,
        "logging_steps": params.logging_steps,
        "logging_first_step": True,
        # A loss that is not a number must be seen, not smoothed away.
        "logging_nan_inf_filter": False,
        "gradient_checkpointing": gpu,
        "bf16": half is torch.bfloat16,
        "fp16": half is torch.float16,
        "use_cpu": not gpu,
        "report_to": [],
        "disable_tqdm": True,
    }
    if spec.method == Method.DPO:
        return DPOConfig(beta=params.beta, **common)
    if params.packing:
        # Packing fills sequences of exactly this length.
        common["max_length"] = params.max_seq_length
    return SFTConfig(packing=params.packing, **common)


def lora_config(lora: Lora) -> LoraConfig:
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) or "all-linear",
        bias=lora.bias,
        task_type="CAUSAL_LM",
    )


def load_model(spec: TrainingSpec) -> Any:
    """Load the base model, in half precision on a GPU; quantized if asked. Raises ``TrainingError``."""
    gpu = torch.cuda.is_available()
    quantization = None
    if spec.quantization is not None and spec.quantization.use_4bit:
        if not gpu:
            raise TrainingError("quantization", "4-bit quantization needs an NVIDIA GPU, and this worker has none")
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=getattr(torch, spec.quantization.compute_dtype),
            bnb_4bit_quant_type=spec.quantization.quant_type,
        )
    return AutoModelForCausalLM.from_pretrained(
        spec.base_model,
        dtype=weights_type(spec),
        quantization_config=quantization,
        trust_remote_code=False,
    )


def half_precision() -> torch.dtype | None:
    """Return the type that this machine trains in: bfloat16 where its GPU computes with it, float16 on an older GPU
    (T4, V100), None for float32 on a CPU."""
    if not torch.cuda.is_available():
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def weights_type(spec: TrainingSpec) -> torch.dtype:
    """Return the type that the base model is loaded in."""
    half = half_precision()
    if half is None:
        return torch.float32
    # Weights that are trained in float16 lose their gradients to its small range: they stay in float32, and only the
    # computation is in float16. Frozen ones need no gradients.
    return torch.float32 if half is torch.float16 and spec.lora is None else half


def _require_modules(model: Any, names: Sequence[str]) -> None:
    """Raise ``TrainingError`` for target modules that the model has not; the message lists those that it has."""
    linear = [
        name
        for name, module in model.named_modules()
        if not list(module.children()) and getattr(getattr(module, "weight", None), "ndim", 0) >= 2
    ]
    unknown = [name for name in names if not any(m == name or m.endswith(f".{name}") for m in linear)]
    if unknown:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise TrainingError(
            "target_modules", f"The base model has no layer called {', '.join(unknown)}; it has {known}"
        )


def _with_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
