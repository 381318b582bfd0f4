"""From a request to a job that can be queued: everything that can be known before a GPU is touched."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.errors import UnknownModel
from engines.model_spec import ModelSpec
from engines.training.adapter_files import FILES as ADAPTER_FILES
from engines.training.datasets.check_messages import CheckResult
from engines.training.spec import HyperParams, Lora, Method, TrainingSpec
from services.access import Access
from services.adapters import AdapterService
from services.errors import InvalidRequest
from services.models import ModelCatalog
from services.safe_paths import resolve_inside
from services.training.dataset_check import DatasetChecker
from services.training.fine_tuning import CHECKPOINTS
from services.training.request import TrainingRequest
from services.training.sources import Copy, DatasetSources, Source
from settings import Settings
from store.principal import Principal
from store.sql.adapters import valid_name
from store.sql.jobs import JobStatus, JobStore
from store.token_log.outcomes import Detail

#: Where a job keeps the adapter that it starts from, in its folder.
_START = "start_adapter"


@dataclass(frozen=True)
class CheckedTraining:
    """A job that may be queued."""

    spec: TrainingSpec
    adapter_name: str
    options: dict[str, Any]
    copies: tuple[Copy, ...] = ()


class TrainingChecks:
    """The checks of one process."""

    def __init__(
        self,
        settings: Settings,
        models: ModelCatalog,
        adapters: AdapterService,
        jobs: JobStore,
        access: Access,
        datasets: DatasetChecker,
        sources: DatasetSources,
    ) -> None:
        self._settings = settings
        self._models = models
        self._adapters = adapters
        self._jobs = jobs
        self._access = access
        self._datasets = datasets
        self._sources = sources

    def check(self, principal: Principal, job_id: str, request: TrainingRequest) -> CheckedTraining:
        """Check all of it. Raises ``InvalidRequest``, which names each fault."""
        model, location = self._base_model(request.base_model)
        names = () if model is None else (model.id,)
        self._access.require_model(self._access.current(principal), request.base_model, names, "baseModel")
        if request.fine_tuning is not None:
            request = _as_served(request, model)
        output = resolve_inside(request.output_dir, [self._settings.outputs_root], "outputDir")
        if output.exists() and not output.is_dir():
            raise InvalidRequest.of("invalid_path", "outputDir", "'outputDir' is a file; it must be a folder")
        work_dir = output / job_id
        name, asked = request.adapter_name or self._name_from(output, job_id), request.fine_tuning
        if asked is not None and model is not None:
            name = asked.adapter_name(model.id, job_id)
        if self._is_models(name):
            description = f"'{name}' is the name of a model; give the adapter another one"
            raise InvalidRequest.of("name_taken", "adapterName", description)
        _require_sensible(request, model)
        params, options = request.params, {}
        data = self._sources.training(principal, request, work_dir)
        validation = self._sources.validation(principal, request, work_dir)
        # The costly ones last.
        found = self._require_usable(request, data, "datasetPath", location, params)
        if validation is not None:
            self._require_usable(request, validation, "validationPath", location, replace(params, eval_split=0.0))
        if asked is not None and model is not None:
            params, shown = asked.settle(params, found.rows)
            options = {
                "openai": asked.to_options(shown),
                "model_name": asked.model_name(model.id, principal.tenant, job_id),
                "checkpoints": CHECKPOINTS,
            }
        copies = [source.copy for source in (data, validation) if source is not None and source.copy is not None]
        start_adapter = ""
        if request.resume_from:
            folder, start_adapter = Path(self._start_adapter(principal, request, location)), str(work_dir / _START)
            copies += [Copy(folder / name, work_dir / _START / name, "resumeFrom") for name in ADAPTER_FILES]
        spec = TrainingSpec(
            job_id=job_id,
            base_model=location,
            dataset=str(data.path),
            validation=str(validation.path) if validation is not None else "",
            # A folder of the job's own: two jobs may name the same one.
            work_dir=str(work_dir),
            method=request.method,
            dataset_format=request.dataset_format,
            long_rows=request.long_rows,
            lora=request.lora,
            quantization=request.quantization,
            params=params,
            export=request.export,
            start_adapter=start_adapter,
        )
        options |= {
            "max_restarts": self._settings.max_restarts if request.max_restarts is None else request.max_restarts,
            "promote_below": request.promote_below,
            "model": model.id if model else "",
            "output_dir": f"{request.output_dir.rstrip('/')}/{job_id}",
            # As its client named them.
            "data_sets": [request.dataset_path, request.validation_path],
            # What is removed when it has ended.
            "copies": [str(copy.target) for copy in copies],
        }
        return CheckedTraining(spec, name, options, tuple(copies))

    def _require_usable(
        self, request: TrainingRequest, source: Source, field: str, location: str, params: HyperParams
    ) -> CheckResult:
        return self._datasets.require_usable(
            source.now, location, request.method, request.dataset_format, request.long_rows, params, field
        )

    def _name_from(self, output: Path, job_id: str) -> str:
        """Return the name of an adapter whose client gave none."""
        return output.name if valid_name(output.name) and not self._is_models(output.name) else job_id

    def _is_models(self, name: str) -> bool:
        """Whether a model has the name: OpenAI clients name models and adapters in one field."""
        registry = self._models.registry
        return name in registry.models or name in registry.aliases

    def _base_model(self, name: str) -> tuple[ModelSpec | None, str]:
        """Return the configured model and where its weights are. Only models that an operator listed."""
        registry = self._models.registry
        try:
            spec = registry.resolve(name)
            return spec, spec.location
        except UnknownModel:
            pass
        for spec in registry.models.values():
            if name in (spec.model_path, spec.location):
                return spec, spec.location
        if name in self._settings.trainable_models:
            return None, name
        description = f"'{name}' is not a model that may be trained; known: {', '.join(registry.models)}"
        raise InvalidRequest.of("model_not_found", "baseModel", description)

    def _start_adapter(self, principal: Principal, request: TrainingRequest, location: str) -> str:
        """Return the folder of what training starts from: an earlier job of the tenant, or an adapter."""
        name = request.resume_from
        job = self._jobs.load(name)
        if job is not None and self._access.can_see(principal, job.tenant):
            if job.status != JobStatus.COMPLETED.value or job.result.get("kind") != "adapter":
                raise _cannot_resume(f"Job '{name}' has no adapter to start from: it must have completed one")
            if job.spec["base_model"] != location:
                raise _cannot_resume(f"Job '{name}' trained another base model")
            return str(job.result["path"])
        adapter = self._adapters.resolve(principal, name)
        if adapter is None:
            description = f"'resumeFrom' must name one of your adapters or an earlier job; '{name}' is neither"
            raise InvalidRequest.of("not_found", "resumeFrom", description)
        models = self._models.registry.models
        if adapter.base_model not in models or models[adapter.base_model].location != location:
            raise _cannot_resume(f"Adapter '{name}' belongs to another base model")
        return str(Path(self._adapters.root) / adapter.path)


def _cannot_resume(description: str) -> InvalidRequest:
    return InvalidRequest.of("invalid_value", "resumeFrom", description)


def _as_served(request: TrainingRequest, model: ModelSpec | None) -> TrainingRequest:
    """Return a request for a model that is to be asked afterwards: with a rank that can be served."""
    if model is None or not model.takes_adapters:
        description = f"Model '{request.base_model}' cannot be fine-tuned here: it is not served, or takes no adapters"
        raise InvalidRequest.of("invalid_value", "baseModel", f"{description} (enable_lora in the model file)")
    assert request.lora is not None
    return replace(request, lora=replace(request.lora, r=min(request.lora.r, model.max_lora_rank)))


def _require_sensible(request: TrainingRequest, model: ModelSpec | None) -> None:
    faults = []
    if request.validation_path and request.params.eval_split:
        description = "Give a data set for evaluation or a part of this one, not both"
        faults.append(Detail("invalid_value", "hyperParams.evalSplit", description))
    if request.lora is None:
        faults += _require_lora(request)
    elif model is not None and model.takes_adapters and request.lora.r > model.max_lora_rank:
        faults.append(Detail("out_of_range", request.rank_field, _rank_too_high(request.lora, model)))
    if request.method == Method.DPO and request.params.packing:
        faults.append(Detail("invalid_value", "hyperParams.packing", "Method 'dpo' does not pack rows"))
    if faults:
        raise InvalidRequest(faults)


def _require_lora(request: TrainingRequest) -> list[Detail]:
    """What makes no sense where all weights are trained."""
    faults = []
    if request.export == "merged":
        faults.append(Detail("invalid_value", "export", "'merged' needs an adapter; all weights are trained here"))
    if request.quantization is not None:
        faults.append(Detail("invalid_value", "quantization", "4-bit weights cannot be trained whole; leave 'lora' on"))
    if request.resume_from:
        description = "'resumeFrom' starts from an adapter, and all weights are trained here; leave 'lora' on"
        faults.append(Detail("invalid_value", "resumeFrom", description))
    return faults


def _rank_too_high(lora: Lora, model: ModelSpec) -> str:
    return f"Rank {lora.r} is above what model '{model.id}' can serve (maxLoraRank {model.max_lora_rank})"
