"""``engine_args`` of a model: which arguments of vLLM's engine an operator may give, and why others are refused.

What is left is judged by vLLM's own parser (``engines.vllm.arguments``), where vLLM is installed.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from engines.errors import ConfigError
from engines.model_spec import ModelSpec

_CAMEL = re.compile(r"(?<=[a-z0-9])([A-Z])")

#: Keys inside an argument's object that name code, files or ports.
_NOT_PLAIN = re.compile(
    r"(^|_)(module|plugin|cls|class|qualname|path|dir|port|ip|host|addr|address|endpoint|url)$", re.IGNORECASE
)
#: What may compile; another word would be the name of code.
_BACKENDS = ("", "eager", "inductor")

_KEY = "it has a key of its own in the model file: write it beside 'engine_args'"
_PORTS = "workers are one process group on one host; it would open ports, and several hosts are several workers"
_CODE = "it names code to be loaded, which the model file must not do"
_LORA = "adapters are counted and named here; use 'enable_lora', 'max_loras' and 'max_lora_rank'"
_LOG = "logging is this system's: JSON lines without prompts"
_TASK = "use 'task'"
_DEFAULTS = "use 'generation_defaults'"
_FILES = "files are found by 'model_path' alone"

#: Argument of vLLM -> why it may not be given.
RESERVED: Mapping[str, str] = {
    # Where things are.
    "model": "use 'model_path'",
    "model_weights": "use 'model_path'",
    "served_model_name": "it is the model's id; further names are 'aliases'",
    "hf_config_path": _FILES,
    "download_dir": f"{_FILES}; HF_HOME says where downloads lie",
    "hf_token": "a secret has no place in the model file; set HF_TOKEN",
    "allowed_local_media_path": "clients must not read this host's files",
    "allowed_media_domains": "pictures are not taken yet",
    "mm_encoder_fp8_scale_save_path": "it writes files",
    # What opens ports or joins hosts.
    **dict.fromkeys(
        (
            *("master_addr", "master_port", "nnodes", "node_rank", "data_parallel_address", "data_parallel_rpc_port"),
            *("data_parallel_size", "data_parallel_size_local", "data_parallel_rank", "data_parallel_start_rank"),
            *("data_parallel_backend", "data_parallel_external_lb", "data_parallel_hybrid_lb"),
            *("data_parallel_multi_port_external_lb", "enable_elastic_ep", "elastic_ep_max_dp_size"),
            *("kv_events_config", "weight_transfer_config", "fault_tolerance_config", "enable_fault_tolerance"),
            *("dp_sync_interval", "disable_nccl_for_dp_synchronization"),
        ),
        _PORTS,
    ),
    # What runs code.
    "trust_remote_code": "code that comes with a model is never run",
    "code_revision": "code that comes with a model is never run",
    **dict.fromkeys(
        (
            *("worker_cls", "worker_extension_cls", "scheduler_cls", "logits_processors", "reasoning_parser_plugin"),
            *("io_processor_plugin", "model_class_overrides", "ec_manager_config", "additional_config"),
        ),
        _CODE,
    ),
    **dict.fromkeys(("kv_transfer_config", "ec_transfer_config"), "it names code to be loaded and opens ports"),
    **dict.fromkeys(("spec_method", "spec_model", "spec_tokens"), "use 'speculative_config'"),
    **dict.fromkeys(("tokenizer", "model_loader_extra_config"), _FILES),
    "profiler_config": "it writes files",
    "otlp_traces_endpoint": "it sends what is served to another host",
    "collect_detailed_traces": "it sends what is served to another host",
    "distributed_executor_backend": "the executor ends with its worker, which vLLM's own does not",
    # What this system counts, logs or decides.
    **dict.fromkeys(("lora_target_modules", "default_mm_loras", "max_lora_cls_labels"), _LORA),
    **dict.fromkeys(
        (
            *("logging_config", "log_config_file", "log_level", "enable_log_requests", "aggregate_engine_logging"),
            *("enable_logging_iteration_details",),
        ),
        _LOG,
    ),
    "disable_log_stats": "the load of each engine is counted from them",
    "scheduling_policy": "it is 'priority': requests carry one",
    "shutdown_timeout": "use CY_LLM_DRAIN_SECONDS",
    "stream_interval": "use 'stream_chunk_size' or 'chunk_merge_ms'",
    "generation_config": _DEFAULTS,
    "runner": _TASK,
    "convert": _TASK,
    "skip_tokenizer_init": "requests are texts",
    "max_num_queued_reqs": "use 'max_pending'",
    "max_num_queued_tokens": "use 'max_pending'",
    "tool_call_parser": _KEY,
    "enable_auto_tool_choice": "use 'enable_auto_tools'",
    # Of vLLM's own use.
    **dict.fromkeys(("_api_process_count", "_api_process_rank", "tokens_only", "help"), "it is vLLM's own"),
    # Beside them: every argument that is a key of the model file.
    **{each.name: _KEY for each in fields(ModelSpec) if each.metadata.get("doc") and each.name not in ("engine_args",)},
}


def checked_engine_args(model_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``given`` by vLLM's names (snake_case). Raises ``ConfigError`` for an argument that is ours."""
    found: dict[str, Any] = {}
    for written, value in given.items():
        name = snake(written.lstrip("-")).replace("-", "_")
        if name in RESERVED:
            raise ConfigError(f"model {model_id!r}: engine_args: {written!r} may not be given: {RESERVED[name]}")
        _require_plain(model_id, name, value)
        if name in found:
            raise ConfigError(f"model {model_id!r}: engine_args: {written!r} is given twice, in two styles")
        if value is not None:
            found[name] = value
    return found


def require_plain_speculation(model_id: str, config: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for speculative decoding by code that is named."""
    if config.get("method") == "custom_class":
        raise ConfigError(f"model {model_id!r}: key 'speculative_config': method 'custom_class' is refused: {_CODE}")
    _require_plain(model_id, "speculative_config", config)


def _require_plain(model_id: str, name: str, value: Any) -> None:
    """Raise ``ConfigError`` where a nested key names code, a file or a port."""
    if isinstance(value, dict):
        for key, nested in value.items():
            if _NOT_PLAIN.search(key):
                why = "it names code, a file or a port"
                raise ConfigError(f"model {model_id!r}: {name!r}: {key!r} may not be given: {why}")
            if key == "backend" and name == "compilation_config" and nested not in _BACKENDS:
                raise ConfigError(f"model {model_id!r}: {name!r}: 'backend' must be one of {', '.join(_BACKENDS[1:])}")
            _require_plain(model_id, name, nested)
    elif isinstance(value, list):
        for nested in value:
            _require_plain(model_id, name, nested)


def snake(key: str) -> str:
    """Return a key in snake_case, which camelCase may have been."""
    return _CAMEL.sub(lambda match: "_" + match.group(1).lower(), key)
