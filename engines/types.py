"""What goes into an engine and what comes out, on the wire between front door and worker."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. ``temperature`` 0 is greedy. None is the model's own value."""

    #: None means: as many as the default allows and the context has room for.
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    #: The likeliest so many; 0 is all.
    top_k: int | None = None
    #: Only what is at least so likely, in parts of the likeliest.
    min_p: float | None = None
    #: What is taken from tokens that were said, -2 to 2: once, and for each time.
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    #: Texts that end the answer and are no part of it.
    stop: tuple[str, ...] = ()
    #: The form of the answer, in OpenAI's words: ``{"type": "json_schema", "json_schema": {"schema": …}}``.
    response_format: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what is set: an older version knows fewer names."""
        values = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: value for name, value in values if value not in (None, ())}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Sampling":
        """Return what :meth:`to_dict` came of. Raises ``TypeError`` for what a newer version asks for."""
        return cls(**{**values, "stop": tuple(values.get("stop", ()))})


@dataclass(frozen=True)
class GenerateRequest:
    """One text to continue. ``adapter`` is a checked absolute path, or None."""

    request_id: str
    prompt: str
    sampling: Sampling = field(default_factory=Sampling)
    #: A conversation, in place of a prompt: turns with ``role`` and ``content``.
    messages: tuple[dict[str, Any], ...] = ()
    adapter: str | None = None
    #: 0 to 9; higher is served first.
    priority: int = 0
    #: Tokens that an earlier attempt delivered; generation goes on after them.
    delivered: tuple[int, ...] = ()
    #: The most that the answer may have where the request asks for no number; None: as the model's entry says.
    answer_ceiling: int | None = None


@dataclass(frozen=True)
class Usage:
    """Token counts by the model's own tokenizer."""

    prompt_tokens: int
    completion_tokens: int
    #: Of the prompt's, those that had been computed before, for another request.
    cached_tokens: int = 0

    def to_dict(self) -> dict[str, int]:
        # Written out: it is called for every token, and ``asdict`` copies deeply.
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


@dataclass(frozen=True)
class Chunk:
    """New text, the tokens it came from, the counts so far, and on the last chunk why it ended."""

    text: str
    token_ids: tuple[int, ...] = ()
    #: ``stop``, ``length`` or ``abort``; None while the text goes on.
    finish_reason: str | None = None
    #: Counts up to and with this chunk, earlier attempts included.
    usage: Usage = Usage(0, 0)


class Portion(NamedTuple):
    """Tokens that an engine gave out together, and on the last ones of a choice why it ended."""

    tokens: tuple[int, ...]
    finish_reason: str | None = None
    #: A stop string, or the id of a stop token, that the end is owed to.
    stop_reason: int | str | None = None
    #: Which of the answer's choices they are of.
    choice: int = 0


@dataclass
class Meter:
    """Counts the tokens of one call while its answer is made: each prompt once, and what was made for all choices."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    #: From the engine's getting the call to its first token, and from that one to the last. Seconds.
    first_token: float | None = None
    generation: float = 0.0

    def timing(self) -> dict[str, float] | None:
        """Return the times in milliseconds; None where they were not measured."""
        if self.first_token is None:
            return None
        return {"first_token_ms": self.first_token * 1000, "generation_ms": self.generation * 1000}

    def usage(self) -> dict[str, int] | None:
        """Return the counts; None where the engine has not begun."""
        if not self.prompt_tokens and not self.completion_tokens:
            return None
        return Usage(self.prompt_tokens, self.completion_tokens).to_dict()


@dataclass(frozen=True)
class HttpCall:
    """One call of the OpenAI-compatible surface, passed through to the engine."""

    request_id: str
    path: str
    body: bytes
    #: Adapter folder that the body's ``model`` names; None for the model itself.
    adapter: str | None = None
    #: What the answer calls the model; None leaves the name that the body has.
    asked_name: str | None = None
    #: Whether it goes on while nobody follows it, and the answer says so where its API has a word for that.
    detached: bool = False
    #: What the delivered part of a stream, or the unfinished one of a whole answer, was made of; it goes on after it.
    delivered: tuple[Portion, ...] = ()
    #: What the engine counts while it answers.
    meter: Meter = field(default_factory=Meter, compare=False)
    #: What it had made of an answer that comes as a whole, where that was stopped: ``delivered`` of the next call.
    unfinished: list[Portion] = field(default_factory=list, compare=False)


class HttpPart(NamedTuple):
    """Bytes of an answer's body, and what of the engine's output went into them, as far as that can be told."""

    data: bytes
    portions: tuple[Portion, ...] = ()


@dataclass(frozen=True)
class HttpStart:
    """The head of the answer to an :class:`HttpCall`; body bytes follow it."""

    status: int
    content_type: str


@dataclass(frozen=True)
class EngineInfo:
    """What an engine tells about itself. Counts are sequences."""

    model: str
    engine: str
    max_model_len: int
    running: int = 0
    waiting: int = 0
    #: The largest batch that one step of the engine has held.
    peak_running: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
