"""``python -m engines.models.hub REPOSITORY [REVISION]``: a model of the hub in this host's cache, whole.

A process of its own, so that a download that hangs can be ended and its library's threads end with it. Writes a JSON
line a second: ``{"have", "total"}`` in bytes; at the end ``{"path", "revision"}``, or ``{"error"}`` with the way out.
``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE`` and ``HF_HOME`` are huggingface_hub's to read. What an earlier call
got is not fetched again; what is fetched is checked by its size, and large files by their hash.
"""

import contextlib
import fcntl
import getpass
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from child_process import die_with_parent
from engines.models.download import continue_download, digest

#: What other frameworks read, and pictures.
_OTHERS = (".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".gguf", ".png", ".jpg", ".jpeg", ".gif", ".md", ".pdf")
#: What vLLM does not read where there are safetensors.
_PICKLED = (".bin", ".pt", ".pth")
#: How often a file that broke off is gone on with, and the first pause. Seconds.
_TRIES, _PAUSE = 6, 1.0
#: How the name of a file ends that is not whole.
_PART = ".incomplete"
#: Files of such a step.
_STEP = re.compile(r"[0-9]+_[A-Za-z]+/[^/]+\Z")
_GATED = "{} is gated: accept its licence on the hub, and set HF_TOKEN to a token of that account"


class _Fault(Exception):
    """What the operator is told."""


def main(repository: str, revision: str | None) -> int:
    """Fetch; returns the exit status."""
    die_with_parent()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    # Plain HTTP, which goes on where it broke off, also through mirrors and proxies.
    os.environ["HF_HUB_DISABLE_XET"] = "1"
    try:
        path, sha = _fetch(repository, revision)
    except _Fault as fault:
        _tell({"error": str(fault)})
        return 1
    except Exception as error:
        # Nobody reads this process's own error output.
        _tell({"error": f"{repository} cannot be fetched: {type(error).__name__}: {_words(error)}"})
        return 1
    _tell({"path": path, "revision": sha})
    return 0


def _fetch(repository: str, revision: str | None) -> tuple[str, str]:
    from huggingface_hub import HfApi, constants, errors

    if constants.HF_HUB_OFFLINE:
        return _from_cache(repository, revision, "HF_HUB_OFFLINE is set")
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=30)
    except errors.GatedRepoError:
        raise _Fault(_GATED.format(repository)) from None
    except errors.RepositoryNotFoundError:
        raise _Fault(
            f"the hub has no model {repository}, or it is private: look at the name, or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise _Fault(f"{repository} has no revision {revision}") from None
    except errors.HFValidationError:
        raise _Fault(f"{repository!r} is no name on the hub: it is owner/name") from None
    except Exception as error:
        # The network's, the proxy's or the mirror's fault, as whatever the library makes of it.
        return _from_cache(repository, revision, f"the hub at {constants.ENDPOINT} cannot be asked ({_words(error)})")
    sha = str(info.sha)
    files = {each.rfilename: each for each in info.siblings or [] if each.rfilename}
    wanted = {name: files[name] for name in _wanted(files)}
    if not any(name.endswith("config.json") for name in wanted):
        raise _Fault(f"{repository} holds no config.json: it is no model that can be served")
    _download(repository, sha, wanted)
    _remember(repository, revision or constants.DEFAULT_REVISION, sha)
    return _from_cache(repository, sha, "its files cannot be found again")


def _download(repository: str, sha: str, wanted: dict[str, Any]) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    cache = Path(constants.HF_HUB_CACHE)
    sizes = {name: int(each.size or 0) for name, each in wanted.items()}
    missing = [name for name in wanted if not isinstance(try_to_load_from_cache(repository, name, revision=sha), str)]
    total, have = sum(sizes.values()), sum(sizes[name] for name in wanted if name not in missing)
    if missing:
        _require_room(cache, total - have)
    progress = _Progress(_blobs(repository), have, total)
    progress.start()
    try:
        for name in missing:
            _get(repository, name, sha, wanted[name])
            progress.add(sizes[name])
    except PermissionError:
        raise _Fault(f"{cache} cannot be written to as {_user()}; change its owner, or set HF_HOME") from None
    except OSError as error:
        if isinstance(error, ConnectionError | TimeoutError):
            raise
        raise _Fault(f"{cache}: {error.strerror or error}") from None
    finally:
        progress.stop()


def _get(repository: str, name: str, sha: str, described: Any) -> None:
    """Put one file into the cache; one that breaks off is gone on with. Raises ``_Fault``, ``OSError``."""
    from huggingface_hub import errors, hf_hub_download

    pause = _PAUSE
    for turn in range(_TRIES):
        try:
            if described.lfs is not None and described.lfs.sha256:
                _get_large(repository, name, sha, described.lfs.sha256, int(described.size))
            path = Path(hf_hub_download(repository, name, revision=sha))
            break
        except (PermissionError, _Fault):
            raise
        except errors.GatedRepoError:
            raise _Fault(_GATED.format(repository)) from None
        except Exception as error:
            if turn + 1 == _TRIES:
                why = f"{name} broke off {_TRIES} times ({_words(error)})"
                raise _Fault(f"{why}; loading it again goes on there") from None
            time.sleep(pause)
            pause *= 2
    if described.size is not None and path.stat().st_size != described.size:
        found = path.stat().st_size
        path.resolve().unlink()
        raise _Fault(f"{name} has {found} bytes and not {described.size}, as the hub says; load it again")


def _get_large(repository: str, name: str, sha: str, expected: str, size: int) -> None:
    """Put a file of the large file storage where huggingface_hub looks for it, named by its hash.

    The library begins such a file anew in each process, and this one goes on where the last one was ended.
    Raises ``_Fault``, ``CannotFetch``, ``OSError``.
    """
    from huggingface_hub import get_token, hf_hub_url

    blobs = _blobs(repository)
    blobs.mkdir(parents=True, exist_ok=True)
    blob, part = blobs / expected, blobs / f"{expected}.cy-llm{_PART}"
    with (blobs / f"{expected}.cy-llm.lock").open("w") as lock:
        # One download for all who ask; a killed one holds nothing.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if blob.exists():
            return
        address = hf_hub_url(repository, name, revision=sha)
        token = get_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        continue_download(address, part, name, size, lambda have, total: None, headers)
        if digest(part) != expected:
            part.unlink()
            raise _Fault(f"{name} is not what the hub describes (another hash); load it again")
        part.rename(blob)


def _remember(repository: str, revision: str, sha: str) -> None:
    """Let the cache know what a branch's name means now, for times without the hub."""
    if revision == sha:
        return
    with contextlib.suppress(PermissionError):
        ref = _blobs(repository).parent / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        draft = ref.with_name(f"{ref.name}.{os.getpid()}")
        draft.write_text(sha)
        draft.rename(ref)


def _blobs(repository: str) -> Path:
    """The folder of a repository's files in the cache (its layout is documented)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"


def _from_cache(repository: str, revision: str | None, why: str) -> tuple[str, str]:
    """Return what the cache has, if it is whole. Raises ``_Fault``, with ``why`` the hub is not asked."""
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except Exception as error:
        raise _Fault(f"{why}, and {repository} is not in this host's cache") from error
    index = path / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else set()
    lacking = [name for name in ("config.json", *names) if not (path / name).exists()]
    if (path / "modules.json").exists():
        steps = json.loads((path / "modules.json").read_text())
        folders = [step["path"] for step in steps if "Pooling" in step["type"]]
        lacking += [f"{folder}/config.json" for folder in folders if not (path / folder / "config.json").exists()]
    if not names and not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        lacking.append("weights")
    if lacking:
        raise _Fault(f"{why}, and the cache holds half of {repository}: {', '.join(sorted(lacking)[:3])} is missing")
    return str(path), path.name


def _wanted(names: Iterable[str]) -> list[str]:
    """Return the files that vLLM reads."""
    names = list(names)
    kept = [name for name in names if not name.endswith(_OTHERS) and "/" not in name and not name.startswith(".")]
    if "modules.json" in names:
        # How a model of sentences makes one vector of many: a folder for each step.
        kept += [name for name in names if _STEP.match(name) and not name.endswith(_OTHERS)]
    if any(name.endswith(".safetensors") for name in kept):
        kept = [name for name in kept if not name.endswith(_PICKLED)]
    return sorted(kept)


def _require_room(cache: Path, needed: int) -> None:
    folder = next((each for each in (cache, *cache.parents) if each.exists()), Path("/"))
    free = shutil.disk_usage(folder).free
    # A little stays for everybody else.
    if free < needed * 1.05 + 2**26:
        raise _Fault(f"{needed >> 20} MiB are needed in {cache}, and {free >> 20} MiB are free")


class _Progress:
    """Tells once a second how much is there."""

    def __init__(self, blobs: Path, have: int, total: int) -> None:
        self._blobs, self._have, self._total = blobs, have, total
        # What an earlier call left of a file counts from the first word on.
        self._reported = self._present()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, size: int) -> None:
        """A file is whole."""
        self._have += size

    def stop(self) -> None:
        self._done.set()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        pause = 0.05
        while not self._done.wait(pause):
            # Between a file's last byte and its being counted it must not seem to shrink.
            self._reported = max(self._reported, self._present())
            _tell({"have": self._reported, "total": self._total})
            pause = 1.0

    def _present(self) -> int:
        parts = sum(part.stat().st_size for part in self._blobs.glob(f"*{_PART}") if part.exists())
        return min(self._have + parts, self._total)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _words(error: Exception) -> str:
    """The first line of an error, without addresses that may hold a token."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition("http")[0].strip()[:200]


def _tell(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
