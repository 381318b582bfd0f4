"""From a checked body to a job that can be queued: everything that is known before a GPU is touched."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import UnknownModel
from engines.registry import ModelSpec
from engines.training.check import load_dataset
from engines.training.lengths import TokenCounter
from engines.training.rows import DatasetError
from engines.training.spec import HyperParams, Lora, Method, Quantization, TrainingSpec
from store.adapters import valid_name
from store.jobs import JobStatus
from store.outcomes import Detail
from webapp.errors import invalid
from webapp.roots import existing_file, resolve_inside
from webapp.services import Services

_SNAKE = re.compile(r"(?<=[a-z0-9])([A-Z])")


@dataclass(frozen=True)
class Checked:
    """A job that may be queued."""

    spec: TrainingSpec
    adapter_name: str
    options: dict[str, Any]


def check(own: Services, job_id: str, owner: str, body: dict[str, Any]) -> Checked:
    """Check all of it. Raises ``ApiError`` (400) that names each fault."""
    model, location = _base_model(own, body["baseModel"])
    dataset = existing_file(body["datasetPath"], own.settings.data_roots, "datasetPath")
    output = resolve_inside(body["outputDir"], [own.settings.outputs_root], "outputDir")
    if output.exists() and not output.is_dir():
        raise invalid([Detail("invalid_path", "outputDir", "'outputDir' is a file; it must be a folder")])
    lora = _lora(body) if body["lora"] else None
    _require_sensible(body, lora, model)
    params = _params(body["hyperParams"])
    _check_dataset(dataset, body, params, location)
    spec = TrainingSpec(
        job_id=job_id,
        base_model=location,
        dataset=str(dataset),
        # A folder of the job's own: two jobs may name the same one.
        work_dir=str(output / job_id),
        method=body["method"],
        dataset_format=body["datasetFormat"],
        long_rows=body["longRows"],
        lora=lora,
        quantization=_quantization(body["quantization"]),
        params=params,
        export=body["export"],
        start_adapter=_start_adapter(own, owner, body, location) if body["resumeFrom"] else "",
    )
    restarts = own.settings.max_restarts if body["maxRestarts"] is None else body["maxRestarts"]
    options = {
        "max_restarts": restarts,
        "promote_below": body["promoteBelow"],
        "model": model.id if model else "",
        "output_dir": f"{body['outputDir'].rstrip('/')}/{job_id}",
    }
    return Checked(spec, body["adapterName"] or _name_from(output, job_id), options)


def _base_model(own: Services, name: str) -> tuple[ModelSpec | None, str]:
    """Return the configured model and where its weights are. Only models that an operator listed."""
    try:
        spec = own.registry.resolve(name)
        return spec, spec.location
    except UnknownModel:
        pass
    for spec in own.registry.models.values():
        if name in (spec.model_path, spec.location):
            return spec, spec.location
    if name in own.settings.trainable_models:
        return None, name
    known = ", ".join(own.registry.models)
    raise invalid(
        [Detail("model_not_found", "baseModel", f"'{name}' is not a model that may be trained; known: {known}")]
    )


def _lora(body: dict[str, Any]) -> Lora:
    params, config = body["hyperParams"], body["loraConfig"]
    return Lora(
        r=config.get("r", params["loraRank"]),
        alpha=config.get("loraAlpha", params["loraAlpha"]),
        dropout=config.get("loraDropout", params["loraDropout"]),
        target_modules=tuple(config.get("targetModules", ())),
        bias=config["bias"],
    )


def _require_sensible(body: dict[str, Any], lora: Lora | None, model: ModelSpec | None) -> None:
    faults = []
    if lora is None and body["export"] == "merged":
        faults.append(Detail("invalid_value", "export", "'merged' needs an adapter; all weights are trained here"))
    if lora is None and body["quantization"] and body["quantization"]["use4bit"]:
        faults.append(Detail("invalid_value", "quantization", "4-bit weights cannot be trained whole; leave 'lora' on"))
    if lora is None and body["resumeFrom"]:
        faults.append(Detail("invalid_value", "resumeFrom", "Only an adapter can be gone on from; leave 'lora' on"))
    if body["method"] == Method.DPO and body["hyperParams"]["packing"]:
        faults.append(Detail("invalid_value", "hyperParams.packing", "Method 'dpo' does not pack rows"))
    if lora is not None and model is not None and model.takes_adapters and lora.r > model.max_lora_rank:
        description = f"Rank {lora.r} is above what model '{model.id}' can serve (maxLoraRank {model.max_lora_rank})"
        field = "loraConfig.r" if "r" in body["loraConfig"] else "hyperParams.loraRank"
        faults.append(Detail("out_of_range", field, description))
    if faults:
        raise invalid(faults)


def _params(given: dict[str, Any]) -> HyperParams:
    values = {_SNAKE.sub(lambda match: "_" + match.group(1).lower(), name): value for name, value in given.items()}
    for name in ("lora_rank", "lora_alpha", "lora_dropout"):
        del values[name]
    return HyperParams(**values)


def _quantization(given: dict[str, Any] | None) -> Quantization | None:
    if given is None or not given["use4bit"]:
        return None
    return Quantization(True, given["bnb4bitComputeDtype"], given["bnb4bitQuantType"])


def _check_dataset(path: Path, body: dict[str, Any], params: HyperParams, location: str) -> None:
    try:
        counter: TokenCounter | None = TokenCounter(Path(location))
    except OSError:
        # A model of the hub that is not on this host: the trainer counts.
        counter = None
    try:
        load_dataset(
            path,
            body["method"],
            body["datasetFormat"],
            counter,
            params.max_seq_length,
            body["longRows"],
            params.eval_split,
        )
    except DatasetError as error:
        raise invalid(
            Detail(
                "dataset",
                problem.field if problem.field.startswith("hyperParams") else "datasetPath",
                _words(problem.line, problem.field, problem.description),
            )
            for problem in error.problems
        ) from error


def _words(line: int, field: str, description: str) -> str:
    where = ", ".join(part for part in (f"line {line}" if line else "", field) if part)
    return f"{where}: {description}" if where else description


def _start_adapter(own: Services, owner: str, body: dict[str, Any], location: str) -> str:
    """An earlier job of the same key, or an adapter, to go on from."""
    name = body["resumeFrom"]
    job = own.jobs.load(name)
    if job is not None and job.owner == owner:
        if job.status != JobStatus.COMPLETED.value or job.result.get("kind") != "adapter":
            raise invalid([Detail("invalid_value", "resumeFrom", f"Job '{name}' has no adapter to go on from")])
        if job.spec["base_model"] != location:
            raise invalid([Detail("invalid_value", "resumeFrom", f"Job '{name}' trained another base model")])
        return str(job.result["path"])
    adapter = own.adapters.resolve(name)
    if adapter is None:
        raise invalid([Detail("not_found", "resumeFrom", f"'{name}' is neither a job of yours nor an adapter")])
    if adapter.base_model not in own.registry.models or own.registry.models[adapter.base_model].location != location:
        raise invalid([Detail("invalid_value", "resumeFrom", f"Adapter '{name}' belongs to another base model")])
    return str(own.adapters.root / adapter.path)


def _name_from(output: Path, job_id: str) -> str:
    return output.name if valid_name(output.name) else job_id
