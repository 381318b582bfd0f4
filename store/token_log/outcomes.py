"""How a request ended: the data of a terminal entry."""

from dataclasses import dataclass, field
from typing import Any

from store.token_log.entries import Outcome


class Code:
    """Error codes of the interface document."""

    INVALID_REQUEST = "INVALID_REQUEST"
    UNAUTHORIZED = "UNAUTHORIZED"
    FORBIDDEN = "FORBIDDEN"
    NOT_FOUND = "NOT_FOUND"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    MODEL_NOT_READY = "MODEL_NOT_READY"
    INSUFFICIENT_RESOURCES = "INSUFFICIENT_RESOURCES"
    RATE_LIMITED = "RATE_LIMITED"
    TRAINING_JOB_NOT_FOUND = "TRAINING_JOB_NOT_FOUND"
    TRAINING_JOB_RUNNING = "TRAINING_JOB_RUNNING"
    CONFLICT = "CONFLICT"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"
    INTERNAL_ERROR = "INTERNAL_ERROR"


@dataclass(frozen=True)
class Detail:
    """One thing that is wrong: a stable word, the dotted field (or ''), a sentence."""

    type: str
    field: str
    description: str

    def to_dict(self) -> dict[str, str]:
        return {"type": self.type, "field": self.field, "description": self.description}


@dataclass(frozen=True)
class Failure:
    """Why a request failed, in the words its client will read."""

    code: str
    message: str
    details: tuple[Detail, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "message": self.message,
            "details": [detail.to_dict() for detail in self.details],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Failure":
        return cls(data["code"], data["message"], tuple(Detail(**detail) for detail in data["details"]))


def finished(
    reason: str | None, usage: dict[str, int] | None, timing: dict[str, float] | None = None
) -> dict[str, Any]:
    """A terminal entry: the text is whole. ``timing``: what the worker measured, in milliseconds."""
    end = {"outcome": Outcome.FINISHED, "reason": reason, "usage": usage}
    return end if timing is None else {**end, "timing": timing}


def failed(failure: Failure, usage: dict[str, int] | None = None) -> dict[str, Any]:
    """A terminal entry: the request failed."""
    return {"outcome": Outcome.ERROR, "error": failure.to_dict(), "usage": usage}


def cancelled(usage: dict[str, int] | None) -> dict[str, Any]:
    """A terminal entry: a client wanted no more. ``usage`` is what it had got until then."""
    return {"outcome": Outcome.CANCELLED, "reason": "cancelled", "usage": usage}


def given_up(kills: int) -> Failure:
    return Failure(
        Code.INSUFFICIENT_RESOURCES,
        f"The request was given up: {kills} workers died while they served it",
        (Detail("poison_request", "", "Do not send the same request again unchanged"),),
    )


def not_served(model: str) -> Failure:
    return Failure(
        Code.MODEL_NOT_READY,
        f"Model '{model}' was unloaded, and no other worker serves it",
        (Detail("model_not_ready", "", "Try again when it is loaded, or ask another model"),),
    )


def cannot_load(model: str) -> Failure:
    return Failure(
        Code.MODEL_NOT_READY,
        f"Model '{model}' cannot be loaded now",
        (Detail("model_load_failed", "", "Ask another model; an operator sees why with bin/cy-llm models status"),),
    )


def waited_for_model(model: str, seconds: float) -> Failure:
    return Failure(
        Code.MODEL_NOT_READY,
        f"Model '{model}' was not loaded within {seconds:g} seconds: it takes longer, or others are busy in its place",
        (Detail("model_not_ready", "", "Nothing was generated; try again shortly, or ask a model that is loaded"),),
    )


def unloaded(model: str) -> Failure:
    return Failure(
        Code.MODEL_NOT_READY,
        f"An operator unloaded model '{model}' by force, which ended this answer",
        (Detail("model_unloaded", "", "The answer is not whole; ask again when the model is loaded, or another one"),),
    )


def deadline_passed(seconds: float) -> Failure:
    return Failure(
        Code.INSUFFICIENT_RESOURCES,
        f"The request did not finish within {seconds:.0f} seconds",
        (Detail("deadline_exceeded", "", "Try again later, or ask for fewer tokens"),),
    )
