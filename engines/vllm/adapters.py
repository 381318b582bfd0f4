"""LoRA adapter folders as vLLM's ``LoRARequest`` objects."""

import asyncio
import errno
import fcntl
import logging
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from vllm.engine.protocol import EngineClient
from vllm.lora.request import LoRARequest

from engines.base import ADAPTER_CONFIG
from engines.errors import EngineError, InvalidRequest
from engines.model_spec import ModelSpec
from engines.vllm.internals import EngineDeadError

log = logging.getLogger(__name__)

#: Copies that are kept in any case; beyond that, those go that nobody has used for so long. Seconds: far longer
#: than any request may run.
_KEPT_COPIES = 64
_IDLE_SECONDS = 90_000.0
#: What the names of files begin with that vLLM reads of an adapter; a checkpoint's optimizer is left alone.
_READ = ("adapter_", "new_embeddings")
#: Name of the file in a folder of copies that its process holds locked: a folder that nobody holds is a dead worker's.
_LOCK = "in-use"
_PREFIX = "cy-llm-adapters-"


@dataclass
class _Copy:
    """An adapter's files as they were when it was first used."""

    #: Name, size and time of each file of the source.
    signature: tuple[tuple[str, int, int], ...]
    folder: Path
    request: LoRARequest
    loaded: bool = False
    used: float = field(default_factory=time.monotonic)


class AdapterTable:
    """Gives each adapter folder one integer id, for as long as its files stay the same.

    vLLM caches weights by id: an id must never come to mean other weights, so ids are only handed out, never reused;
    files that were replaced get a new one. What vLLM pushed out of its cache it reads from disk again, inside a step
    of the engine, where a file that is gone or half-written would end it: so it reads from copies of this table's own.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._copies: dict[str, _Copy] = {}
        self._folder: Path | None = None
        self._held: IO[str] | None = None
        self._numbers = 0
        self._lock = asyncio.Lock()

    async def loaded(self, client: EngineClient, path: str | None) -> LoRARequest | None:
        """Return the adapter at ``path``, the model's own for None; at its first use it is loaded, alone.

        A broken adapter that first shows in a step of the batch would end the whole engine. Raises ``InvalidRequest``.
        """
        path = path or self._spec.adapter_path
        if path is None:
            return None
        if not self._spec.takes_adapters:
            raise InvalidRequest(
                "adapter_not_supported", "adapter", f"Model {self._spec.id!r} takes no adapters (enable_lora is off)"
            )
        signature = await asyncio.to_thread(_signature, path)
        if signature is None:
            raise InvalidRequest(
                "adapter_not_found", "adapter", f"No adapter of that name exists for model {self._spec.id!r}"
            )
        known = self._copies.get(path)
        if known is None or known.signature != signature or not known.loaded:
            async with self._lock:
                known = await self._renew(client, path, signature)
        known.used = time.monotonic()
        return known.request

    def close(self) -> None:
        """Remove the copies."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if self._held is not None:
            self._held.close()

    async def _renew(self, client: EngineClient, path: str, signature: tuple[tuple[str, int, int], ...]) -> _Copy:
        known = self._copies.get(path)
        if known is not None and known.signature == signature and known.loaded:
            # Whoever came first has done it.
            return known
        copy = await asyncio.to_thread(self._copy, path, signature)
        try:
            await client.add_lora(copy.request)
        except EngineDeadError:
            raise
        except Exception as error:
            shutil.rmtree(copy.folder, ignore_errors=True)
            log.warning("Adapter cannot be loaded: %s", error, extra={"model": self._spec.id})
            raise InvalidRequest(
                "adapter_broken", "adapter", f"The adapter cannot be loaded into model {self._spec.id!r}"
            ) from error
        copy.loaded = True
        # A copy that it replaces stays for a while: requests may run on it.
        if known is not None:
            self._copies[f"{path}\0{known.request.lora_int_id}"] = known
        self._copies[path] = copy
        self._remove_idle()
        return copy

    def _copy(self, path: str, signature: tuple[tuple[str, int, int], ...]) -> _Copy:
        if self._folder is None:
            _remove_stale()
            self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
            self._held = (self._folder / _LOCK).open("w")
            fcntl.flock(self._held, fcntl.LOCK_EX)
        self._numbers += 1
        target = self._folder / str(self._numbers)
        target.mkdir()
        try:
            for name, _, _ in signature:
                _copy_file(Path(path) / name, target / name)
        except OSError as error:
            shutil.rmtree(target, ignore_errors=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise EngineError(f"an adapter cannot be copied to {self._folder}: {error.strerror}") from error
            raise InvalidRequest(
                "adapter_broken", "adapter", f"The adapter's files cannot be read: {error.strerror or error}"
            ) from error
        return _Copy(signature, target, LoRARequest(f"adapter-{self._numbers}", self._numbers, str(target)))

    def _remove_idle(self) -> None:
        """Called with the newest copy in place, which is never idle."""
        limit = time.monotonic() - _IDLE_SECONDS
        idle = sorted((copy.used, path) for path, copy in self._copies.items() if copy.used < limit)
        for _, path in idle[: max(0, len(self._copies) - _KEPT_COPIES)]:
            shutil.rmtree(self._copies.pop(path).folder, ignore_errors=True)


def _signature(path: str) -> tuple[tuple[str, int, int], ...] | None:
    """Return what tells one state of an adapter's files from another; None where there is no adapter."""
    try:
        found = []
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(_READ) and entry.is_file():
                    status = entry.stat()
                    found.append((entry.name, status.st_size, status.st_mtime_ns))
    except (OSError, ValueError):
        return None
    return tuple(sorted(found)) if any(name == ADAPTER_CONFIG for name, _, _ in found) else None


def _remove_stale() -> None:
    """Remove what workers left behind that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            with (folder / _LOCK).open("r") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            # In use, another user's, or just being made.
            continue


def _copy_file(source: Path, target: Path) -> None:
    if not source.stat().st_mode & 0o222:
        # Of a trained version: nobody writes to it any more, so its bytes can be shared.
        try:
            target.hardlink_to(source)
            return
        except OSError:
            # Another file system.
            log.debug("An adapter's file is copied, it cannot be linked", extra={"file": source.name})
    shutil.copyfile(source, target)
