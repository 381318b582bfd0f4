"""What can go wrong in an engine. Each error knows the code and the field a client sees."""


class EngineError(Exception):
    """Root of this tree."""


class ConfigError(EngineError):
    """The model file is wrong; the message names the model, the key and what is allowed."""


class UnknownModel(EngineError):
    """The registry holds no model of that name."""


class EngineStartError(EngineError):
    """The engine could not be started."""


class OutOfMemory(EngineStartError):
    """The engine refused to start for want of memory; a smaller configuration may fit."""


class EngineDead(EngineError):
    """The engine stopped working; its worker must be replaced."""


class CannotContinue(EngineError):
    """Part of an answer was delivered that cannot be gone on with exactly."""


class InvalidRequest(EngineError):
    """The request can never be served as it is.

    ``kind`` is a stable word for programs, ``field`` the dotted name of the field.
    """

    def __init__(self, kind: str, field: str, description: str) -> None:
        super().__init__(description)
        self.kind = kind
        self.field = field
        self.description = description
