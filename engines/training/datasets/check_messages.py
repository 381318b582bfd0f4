"""What a check of a data set is asked, and what it answers: JSON between processes. Needs no tokenizer."""

import json
from dataclasses import dataclass, field

from engines.training.datasets.rows import Problem


@dataclass(frozen=True)
class CheckRequest:
    """What to check, and how much it may cost."""

    path: str
    method: str
    format: str
    #: Folder of the base model, or its name on the hub; lengths are not counted where this host has no tokenizer.
    model: str
    max_tokens: int
    long_rows: str
    eval_split: float
    #: Bytes of the file, rows, bytes of memory; 0 is no bound.
    max_bytes: int = 0
    max_rows: int = 0
    max_memory: int = 0
    #: Whether a tokenizer that is not on this host may be fetched from the hub.
    download: bool = False


@dataclass(frozen=True)
class CheckResult:
    """What was found. ``problems`` is empty for a data set that can be trained on."""

    problems: list[Problem] = field(default_factory=list)
    format: str = ""
    rows: int = 0
    longest: int = 0
    #: Whether lengths were counted.
    counted: bool = False
    #: Rows that are left out because their answer is empty.
    empty: int = 0

    @classmethod
    def from_json(cls, text: bytes) -> "CheckResult":
        document = json.loads(text)
        document = {name: value for name, value in document.items() if name in cls.__dataclass_fields__}
        return cls(**{**document, "problems": [Problem(**problem) for problem in document["problems"]]})
