"""Where the data sets of a job are: paths in the data folders, or files that were uploaded."""

from dataclasses import dataclass
from pathlib import Path

from services.files import FileService
from services.safe_paths import existing_file
from services.training.request import TrainingRequest
from settings import Settings
from store.files.files import PREFIX
from store.files.ids import is_id
from store.principal import Principal

#: What a data set must have been uploaded for.
_PURPOSE = "fine-tune"


@dataclass(frozen=True)
class Copy:
    """What a job keeps for itself: it outlives what it was made of."""

    source: Path
    target: Path
    #: Where its client named it.
    field: str


@dataclass(frozen=True)
class Source:
    """A data set: where it is now, where its job will read it, and the file that it is."""

    now: Path
    path: Path
    #: Where it is a file, which may be deleted.
    copy: Copy | None = None


class DatasetSources:
    """Finds data sets."""

    def __init__(self, settings: Settings, files: FileService) -> None:
        self._settings = settings
        self._files = files

    def training(self, principal: Principal, request: TrainingRequest, work_dir: Path) -> Source:
        """Return what is learned from. Raises ``InvalidRequest``."""
        return self._find(principal, request.dataset_path, "datasetPath", work_dir / "training")

    def validation(self, principal: Principal, request: TrainingRequest, work_dir: Path) -> Source | None:
        """Return what is evaluated with; None without. Raises ``InvalidRequest``."""
        if not request.validation_path:
            return None
        return self._find(principal, request.validation_path, "validationPath", work_dir / "validation")

    def _find(self, principal: Principal, name: str, field: str, copy: Path) -> Source:
        if not is_id(name, PREFIX):
            path = existing_file(name, self._settings.data_roots, field)
            return Source(path, path)
        file, source = self._files.input(principal, name, _PURPOSE, field)
        target = copy.with_suffix(file.suffix)
        return Source(source, target, Copy(source, target, field))
