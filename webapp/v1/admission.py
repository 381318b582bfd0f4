"""From a checked body of the native API to a request that may be followed."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from engines.registry import ModelSpec
from engines.types import Sampling
from store.outcomes import Detail
from store.requests import RequestRecord, new_request_id
from webapp import auth, errors, generation, idempotency
from webapp.generation import Following, Plan
from webapp.services import Services


@dataclass(frozen=True)
class Admitted:
    """A request that may begin, or (``plan`` None) one that an earlier call has begun."""

    record: RequestRecord
    plan: Plan | None
    #: What is forgotten when the request cannot be sent.
    note: str | None = None

    @contextmanager
    def follow(self, own: Services) -> Iterator[Following]:
        """Begin the request, or attach to it, and hold one of the key's streams meanwhile."""
        with ExitStack() as stack:
            with idempotency.forget_on_error(own, self.note):
                stack.enter_context(own.limiter.hold_stream(self.record.owner, self.record.id))
                if self.plan is None:
                    following = stack.enter_context(generation.attach(own, self.record))
                else:
                    following = stack.enter_context(generation.begin(own, self.record, self.plan))
            yield following


def accept(
    own: Services,
    body: dict[str, Any],
    with_metadata: bool = False,
    key: str | None = None,
    timeout: float | None = None,
) -> Admitted:
    """Turn a checked body into a request. Raises ``ApiError``.

    ``key`` is the idempotency key; None takes it from the header. ``timeout`` is how long the client
    would wait, in seconds; the system's own bound holds in any case.
    """
    principal = auth.principal()
    own.limiter.count_request(principal.id)
    spec = generation.resolve(own, body["modelId"], "modelId")
    known = idempotency.find(own, principal.id, body, key)
    if known is not None:
        return Admitted(known, None)
    adapter = _adapter(own, spec, body.get("adapter"))
    plan = generation.admit(own, spec, body["workerHint"])
    parameters = body["generation"]
    _check_room(parameters.get("maxNewTokens"), (plan.fleet.engine_info(spec.id) or {}).get("max_model_len"))
    sampling = Sampling(
        max_new_tokens=parameters.get("maxNewTokens"),
        temperature=parameters["temperature"],
        top_p=parameters["topP"],
        repetition_penalty=parameters["repetitionPenalty"],
    )
    record = RequestRecord(
        id=new_request_id(),
        kind=RequestRecord.GENERATE,
        model=spec.id,
        owner=principal.id,
        deadline=time.time() + min(own.settings.request_timeout, math.inf if timeout is None else timeout),
        payload={
            "prompt": body["prompt"],
            "adapter": adapter,
            "sampling": asdict(sampling),
            "with_metadata": with_metadata,
        },
        priority=body["priority"],
        worker_hint=body["workerHint"],
        metadata=body["metadata"],
    )
    earlier = idempotency.remember(own, record, body, key)
    if earlier is not None:
        return Admitted(earlier, None)
    return Admitted(record, plan, idempotency.name_of(principal.id, key))


def _adapter(own: Services, spec: ModelSpec, name: str | None) -> str | None:
    """Return the folder that a name means now: a request ends on the version that it began on.

    What is no name is a path inside the adapters root; its worker judges it.
    """
    if name is None:
        return None
    found = own.adapters.resolve(name)
    if found is None:
        return name
    if found.base_model != spec.id:
        description = f"Adapter '{name}' belongs to model '{found.base_model}', not to '{spec.id}'"
        raise errors.invalid([Detail("adapter_wrong_model", "adapter", description)])
    return found.path


def _check_room(wanted: int | None, context: int | None) -> None:
    """Refuse here what no prompt could leave room for; the worker knows the prompt's length."""
    if wanted is not None and context and wanted >= context:
        description = f"{wanted} is too large: the model's context holds {context} tokens, the prompt included"
        raise errors.invalid([Detail("out_of_range", "generation.maxNewTokens", description)])
