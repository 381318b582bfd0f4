"""What a look at one part of an installation came to."""

from dataclasses import dataclass


class Level:
    """How bad it is."""

    OK = "ok"
    #: It works, and something will bite sooner or later.
    WARNING = "warning"
    #: It cannot work so.
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    part: str
    level: str
    #: What was seen.
    what: str
    #: What to do; '' where nothing is.
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """JSON's values."""
        return {"part": self.part, "level": self.level, "what": self.what, "remedy": self.remedy}


def ok(part: str, what: str) -> Finding:
    """All is well."""
    return Finding(part, Level.OK, what)


def warning(part: str, what: str, remedy: str) -> Finding:
    """It works for now."""
    return Finding(part, Level.WARNING, what, remedy)


def failure(part: str, what: str, remedy: str) -> Finding:
    """It cannot work so."""
    return Finding(part, Level.FAILURE, what, remedy)
