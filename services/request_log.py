"""One log line for each answer, the same for every face."""

import logging
import time
from dataclasses import dataclass, field

from services import metrics
from services.errors import ServiceError
from store.principal import Principal

log = logging.getLogger(__name__)


@dataclass
class AnswerRecord:
    """Gathers what is known of an answer until :meth:`write`."""

    #: ``http``, ``websocket`` or ``grpc``.
    face: str
    #: ``POST /api/v1/inference``, ``/cy.llm.AiInference/StreamPredict``.
    operation: str
    started: float = field(default_factory=time.monotonic)
    principal: Principal | None = None
    #: Of the request record, and the client's metadata.
    fields: dict[str, str] = field(default_factory=dict)
    #: HTTP status; None where the face has none.
    status: int | None = None
    #: Code of the interface document; empty when all went well.
    code: str = ""
    #: The operation where it is counted: of few values, whatever clients ask for. Empty is the operation's first word.
    route: str = ""

    def failed(self, error: ServiceError) -> None:
        """Note what the client was told."""
        self.code = error.failure.code
        kind = error.failure.details[0].type if error.failure.details else ""
        if kind in metrics.LIMITS:
            metrics.REFUSED_BY_LIMIT.labels(kind).inc()

    def write(self) -> None:
        """Write the line, and count it. No prompt, no key: a key is named."""
        route = self.route or self.operation.partition(" ")[0]
        metrics.REQUESTS.labels(self.face, route, self.fields.get("model", ""), self.code).inc()
        extra: dict[str, object] = {"face": self.face, "operation": self.operation}
        if self.status is not None:
            extra["status"] = self.status
        if self.principal is not None:
            extra |= {"key": self.principal.name, "key_tenant": self.principal.tenant}
        if self.code:
            extra["code"] = self.code
        duration = round((time.monotonic() - self.started) * 1000)
        log.info("Answered", extra={**extra, **self.fields, "duration_ms": duration})
