"""The table: what each situation comes to through each face. No cell is empty; one may say why it does not apply."""

from dataclasses import dataclass

from testing.faces import (
    INFERENCE,
    TRAINING,
    Face,
    Grpc,
    NativeStream,
    NativeWebSocket,
)


@dataclass(frozen=True)
class Expected:
    """A code of the interface document ('' is success) and the retry hint in seconds that comes with it."""

    code: str = ""
    retry_after: int | None = None
    #: The client is told so on a stream that has begun: no hint can come with it.
    in_stream: bool = False


@dataclass(frozen=True)
class DoesNotApply:
    """Why there is nothing to see."""

    reason: str


Cell = Expected | DoesNotApply
FaceType = type[Face]
FACES: tuple[FaceType, ...] = (*INFERENCE, *TRAINING)

_WAITS = DoesNotApply(
    "a training waits in the database for as long as it takes; nothing is refused for want of a worker"
)
_ONE_RUNNER = DoesNotApply("a training holds no stream of its key: it runs without its client")
_NO_TOKENS = DoesNotApply("a training is not measured by its key's token limits, which are of prompts and answers")
_KILLED = DoesNotApply("what a training survives is seen in tests/integration/test_training.py")
_NO_ID = DoesNotApply("the face has no way to name an earlier request")
_WORDS = DoesNotApply("deployed clients' TrainingRequest has no field that names an adapter")


def everywhere(code: str, retry_after: int | None = None, **others: Cell) -> dict[FaceType, Cell]:
    """The same for every face, but for the faces named."""
    special = {face: others[face.__name__] for face in FACES if face.__name__ in others}
    return {**dict.fromkeys(FACES, Expected(code, retry_after)), **special}


def inference(code: str, retry_after: int | None, training: Cell, **others: Cell) -> dict[FaceType, Cell]:
    return everywhere(code, retry_after, **{face.__name__: training for face in TRAINING}, **others)


_GIVEN_UP = Expected("INSUFFICIENT_RESOURCES", in_stream=True)
_INVALID = Expected("INVALID_REQUEST")
_MISSING = Expected("MODEL_NOT_FOUND")
_ENDED = Expected("")

TABLE: dict[str, dict[FaceType, Cell]] = {
    "no key": everywhere("UNAUTHORIZED"),
    "wrong key": everywhere("UNAUTHORIZED"),
    "key without the scope": everywhere("FORBIDDEN"),
    "key without the model": everywhere("FORBIDDEN"),
    "key revoked while a stream runs": everywhere("UNAUTHORIZED"),
    "unknown model": everywhere("MODEL_NOT_FOUND", TrainingHttp=_INVALID, TrainingGrpc=_INVALID),
    "unknown adapter": everywhere("INVALID_REQUEST", OpenAIWhole=_MISSING, OpenAIStream=_MISSING, TrainingGrpc=_WORDS),
    "no worker": inference("MODEL_NOT_READY", 30, _WAITS),
    "model loading": inference("MODEL_NOT_READY", 5, _WAITS),
    "full queue": inference("INSUFFICIENT_RESOURCES", 5, _WAITS),
    "over the rate": everywhere("RATE_LIMITED", 60),
    "over the tokens a minute": inference("RATE_LIMITED", 60, _NO_TOKENS),
    "quota spent": inference("RATE_LIMITED", 86_400, _NO_TOKENS),
    "larger than the token limit": inference("INVALID_REQUEST", None, _NO_TOKENS),
    "over the streams per key": inference("RATE_LIMITED", 1, _ONE_RUNNER),
    "over the streams per key, by resuming": {
        **dict.fromkeys(FACES, _NO_ID),
        **dict.fromkeys((NativeStream, NativeWebSocket, Grpc), Expected("RATE_LIMITED", 1)),
        **dict.fromkeys(TRAINING, _ONE_RUNNER),
    },
    "database away": everywhere("INSUFFICIENT_RESOURCES", 5),
    # A job that is in the database is queued: a worker that looks for forgotten jobs sends it when Redis is back.
    "Redis away": inference("INSUFFICIENT_RESOURCES", 2, Expected("")),
    "deadline passed": inference(
        "INSUFFICIENT_RESOURCES",
        5,
        DoesNotApply("a training has no deadline"),
        NativeStream=_GIVEN_UP,
        NativeWebSocket=_GIVEN_UP,
        OpenAIStream=_GIVEN_UP,
    ),
    "worker killed": inference("", None, _KILLED),
    "client gone": everywhere(""),
    "process told to stop": everywhere(
        "INSUFFICIENT_RESOURCES",
        1,
        NativeStream=_GIVEN_UP,
        NativeWebSocket=_GIVEN_UP,
        OpenAIWhole=_ENDED,
        OpenAIStream=_ENDED,
        TrainingHttp=_ENDED,
        TrainingGrpc=_ENDED,
    ),
    "the same idempotency key with the same body": everywhere(""),
    "the same idempotency key with another body": everywhere("IDEMPOTENCY_CONFLICT"),
}
