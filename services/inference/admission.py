"""From a checked request to one that may be followed. Every face's requests pass here."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engines.model_spec import ModelSpec, Task
from services.access import Access
from services.adapters import AdapterService
from services.context import RequestContext
from services.errors import InvalidRequest
from services.idempotency import Idempotency
from services.inference.bodies import prepare
from services.inference.generation_defaults import complete
from services.inference.openai_body import require_text
from services.inference.responses_body import PATH as RESPONSES_PATH
from services.inference.responses_body import response_id
from services.inference.routing import Route, Router
from services.inference.submission import GenerationRequest, OpenAIRequest, Submission
from services.inference.token_need import TokenNeed, need_of_body, need_of_text
from services.limit_holders import Holder
from services.models import ModelCatalog
from services.token_limits import TokenLimits
from store.redis.request_records import RequestRecord, RequestStore, new_request_id
from store.sql.adapters import reference
from store.token_budget.settlement import FIELD, measured_by
from store.token_log import log as token_log
from store.token_log.entries import Outcome, encode
from store.token_log.outcomes import Code
from tasks.broker.names import HIGHEST_PRIORITY

#: vLLM serves the lowest number first; a client's own is 0 or less.
BACKGROUND_PRIORITY = 1
#: Failures that are the system's, not the request's.
_PASSING = (Code.INTERNAL_ERROR, Code.INSUFFICIENT_RESOURCES, Code.MODEL_NOT_READY)


class Admission:
    """Key, model, idempotency key, adapter, queue: in this order, each once."""

    def __init__(
        self,
        access: Access,
        models: ModelCatalog,
        adapters: AdapterService,
        router: Router,
        idempotency: Idempotency,
        requests: RequestStore,
        request_timeout: float,
        stream_ttl: int,
        token_limits: TokenLimits,
    ) -> None:
        self._access = access
        self._models = models
        self._adapters = adapters
        self._router = router
        self._idempotency = idempotency
        self._requests = requests
        self._request_timeout = request_timeout
        self._stream_ttl = stream_ttl
        self._token_limits = token_limits

    def admit(self, context: RequestContext, request: GenerationRequest) -> Submission:
        """Admit a text to continue. Raises ``ServiceError``, ``redis.RedisError``, ``SQLAlchemyError``."""
        context = self._current(context)
        spec = self._models.resolve(request.model, "modelId")
        adapter_names = () if request.adapter is None else (request.adapter, request.adapter.partition("@")[0])
        self._access.require_model(context.principal, request.model, (spec.id, *adapter_names), "modelId")
        self._require_task(spec, (Task.GENERATE,), "modelId")
        require_text(list(request.messages), spec, "messages")

        def make_record() -> tuple[RequestRecord, Route]:
            adapter, adapter_name = None, ""
            if request.adapter is not None:
                adapter, adapter_name = self._adapters.folder_of(context.principal, spec, request.adapter)
            route = self._router.route_request(spec, request.worker_hint)
            _require_room(request.sampling.max_new_tokens, route.fleet.engine_info(spec.id))
            measured = self._token_limits.measured(context.principal)
            prompt = list(request.messages) or request.prompt
            need = need_of_text(prompt, request.sampling.max_new_tokens, spec, measured) if measured else None
            record = RequestRecord(
                id=new_request_id(),
                kind=RequestRecord.GENERATE,
                model=spec.id,
                owner=context.principal.id,
                deadline=self._deadline(context),
                payload={
                    # A worker of a version that knows no conversations misses the prompt, and says so.
                    **({"messages": list(request.messages)} if request.messages else {"prompt": request.prompt}),
                    "adapter": adapter,
                    "adapter_name": adapter_name,
                    "sampling": complete(request.sampling, spec).to_dict(),
                    "with_metadata": request.with_metadata,
                    "performance": request.tells_performance,
                    "tenant": context.principal.tenant,
                    **_limited(need, measured, counts_in_minute=True),
                    **({"answer_ceiling": need.ceiling} if need else {}),
                    **_traced(context),
                },
                priority=request.priority,
                worker_hint=request.worker_hint,
                metadata=request.metadata,
            )
            return record, route

        return self._begin_once(context, request.body, make_record)

    def admit_openai(self, context: RequestContext, request: OpenAIRequest) -> Submission:
        """Admit a call of the OpenAI-compatible API. Raises as :meth:`admit`."""
        context = self._current(context)
        named = self._models.resolve_name(context.principal, request.model)
        adapter_names = () if named.adapter is None else (named.adapter.name, reference(named.adapter))
        self._access.require_model(context.principal, request.model, (named.spec.id, *adapter_names), "model")
        self._require_task(named.spec, request.tasks, "model")
        prepared = prepare(request.path, request.body, named.spec)
        measured = () if request.light else self._measured(context, request.background)
        need, body = None, prepared.body
        if measured:
            need, body = need_of_body(prepared.body, request.body, named.spec, measured)

        def make_record() -> tuple[RequestRecord, Route]:
            route = self._router.route_request(named.spec, light=request.light)
            # The version that the name means now, so that the answer stays on it.
            served_name = reference(named.adapter) if named.adapter else named.folder or named.spec.id
            request_id = new_request_id()
            named_body = {**body, "model": served_name}
            if request.background:
                named_body["priority"] = BACKGROUND_PRIORITY
            if request.path == RESPONSES_PATH:
                # The same id in each attempt.
                named_body["request_id"] = response_id(request_id)
            record = RequestRecord.openai(
                id=request_id,
                model=named.spec.id,
                owner=context.principal.id,
                tenant=context.principal.tenant,
                deadline=self._deadline(context),
                path=request.path,
                body=encode(named_body),
                adapter=named.folder,
                adapter_name=reference(named.adapter) if named.adapter else named.folder or "",
                # The answer names what was asked for.
                asked_name=request.model if named.keeps_its_name and request.model_given else None,
                streamed=bool(request.body.get("stream")),
                kept_as=response_id(request_id) if request.on_record else None,
                background=request.background,
                preemptible=request.preemptible,
                light=request.light,
                detached=request.detached,
                priority=HIGHEST_PRIORITY if request.light else 0 if request.background else prepared.priority,
            )
            record.payload.update(_limited(need, measured, counts_in_minute=not request.background), **_traced(context))
            return record, route

        return self._begin_once(context, request.body, make_record, request.on_record)

    def _measured(self, context: RequestContext, background: bool) -> tuple[Holder, ...]:
        """Return whose token limits hold. A line of a batch counts in quotas alone: it waits for its turn anyway."""
        measured = self._token_limits.measured(context.principal)
        if background:
            return tuple(replace(holder, tokens_per_minute=0) for holder in measured if holder.quota)
        return measured

    def _require_task(self, spec: ModelSpec, tasks: tuple[str, ...], field: str) -> None:
        if spec.task in tasks:
            return
        fitting = [model.id for model in self._models.registry.models.values() if model.task in tasks]
        description = f"Model '{spec.id}' is for task '{spec.task}', and this needs '{' or '.join(tasks)}'; " + (
            f"models for it: {', '.join(fitting)}" if fitting else "no model here is for it"
        )
        raise InvalidRequest.of("wrong_task", field, description)

    def _current(self, context: RequestContext) -> RequestContext:
        """A call may carry many requests, over a longer time than its key lives, or allows the same."""
        return replace(context, principal=self._access.current(context.principal))

    def _begin_once(
        self,
        context: RequestContext,
        body: dict[str, Any],
        make_record: Callable[[], tuple[RequestRecord, Route]],
        on_record: Callable[[RequestRecord], None] | None = None,
    ) -> Submission:
        """Return the request that the caller's idempotency key began, else a new one, shown to ``on_record``."""
        name = self._idempotency.name_of(context)
        begun = self._load(self._idempotency.find(name, body))
        if begun is not None and name is not None:
            if not self._was_lost(begun):
                return Submission(begun, None)
            self._idempotency.forget(name, begun.id)
        record, route = make_record()
        if route.loads_first:
            context.on_model_loading(record.model)
        if name is not None:
            # The record first: whoever finds the key must find the record.
            self._requests.save(record)
            lifetime = max(1, int(record.deadline - record.created)) + self._stream_ttl
            faster = self._load(self._idempotency.remember(name, record.id, body, lifetime))
            if faster is not None:
                return Submission(faster, None)
        if on_record is not None:
            on_record(record)
        return Submission(record, route, name)

    def _was_lost(self, record: RequestRecord) -> bool:
        """Whether a request ended without an answer: its client's connection broke, or the system failed it.

        That is what the key is for: the repeated call gets an answer, not the stored loss. A native request whose
        client left has not ended, and is taken up again.
        """
        last = token_log.last(self._requests.client, record.id)
        if last is None or not last.terminal:
            return False
        end = last.json()
        if end["outcome"] == Outcome.CANCELLED:
            return record.kind == RequestRecord.OPENAI
        if end["outcome"] != Outcome.ERROR or end["error"]["code"] not in _PASSING:
            return False
        # What killed its workers, or took all its time, would do so again.
        kinds = {detail["type"] for detail in end["error"]["details"]}
        return not kinds & {"poison_request", "deadline_exceeded"}

    def _load(self, request_id: str | None) -> RequestRecord | None:
        return None if request_id is None else self._requests.load(request_id)

    def _deadline(self, context: RequestContext) -> float:
        bound = math.inf if context.timeout is None else context.timeout
        return time.time() + min(self._request_timeout, bound)


def _limited(need: TokenNeed | None, measured: tuple[Holder, ...], counts_in_minute: bool) -> dict[str, Any]:
    """Return what the payload holds of the limits that measure the request."""
    if need is None:
        return {}
    return {FIELD: measured_by((holder.id for holder in measured), need.tokens, counts_in_minute)}


def _traced(context: RequestContext) -> dict[str, str]:
    """Return what the payload holds of the trace, so that the lines of every process name it."""
    return {"trace_id": context.trace_id} if context.trace_id else {}


def _require_room(wanted: int | None, engine: dict[str, Any] | None) -> None:
    """Refuse here what no prompt could leave room for; the worker knows the prompt's length."""
    window = (engine or {}).get("max_model_len")
    if wanted is not None and window and wanted >= window:
        description = f"{wanted} is too large: the model's context holds {window} tokens, the prompt included"
        raise InvalidRequest.of("out_of_range", "generation.maxNewTokens", description)
