"""This machine: disks, ports, cards, packages, the model file."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cli.doctor.finding import Finding, failure, ok, warning
from configuration.listen_address import join, listens
from engines.errors import ConfigError, EngineStartError
from engines.models.fetch import require_fetched
from engines.registry import load_registry
from settings import ROOT, Settings

#: Less than that is soon full: one adapter with its checkpoints is some hundred MB. Bytes.
_LITTLE_SPACE = 5 * 2**30
#: How long the driver may take to answer. Seconds.
_DRIVER_SECONDS = 10
_CARD_FIELDS = "name,driver_version,memory.total,memory.used"
#: What is pinned and matters most: they work together in these versions alone.
_PACKAGES = ("vllm", "torch", "transformers", "peft", "trl", "celery", "redis", "flask", "gunicorn", "sqlalchemy")


def look_at_models(settings: Settings) -> Iterator[Finding]:
    """Yield what there is to say of the model file and of its default model."""
    try:
        registry = load_registry(settings.config_path, **settings.registry_options)
    except ConfigError as error:
        yield failure("models", str(error), "Mend the model file; bin/cy-llm config check tells more")
        return
    yield ok("models", f"{len(registry.models)} in the model file, '{registry.default.id}' by default")
    try:
        require_fetched(registry.default)
    except EngineStartError as error:
        yield warning("models", str(error), "bin/serve fetches the model that it serves")


def look_at_disks(settings: Settings) -> Iterator[Finding]:
    """Yield what there is to say of the folders that are written to, one finding for each disk."""
    folders = (settings.var, settings.files_root, settings.adapters_root, settings.outputs_root)
    seen: set[int] = set()
    for folder in folders:
        there = next(each for each in (folder, *folder.parents) if each.exists())
        if not os.access(there, os.W_OK):
            remedy = f"Let the user of the service write there (user id {os.geteuid()})"
            yield failure("disk", f"{there} cannot be written to", remedy)
        device = there.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(there).free
        what = f"{free / 2**30:.1f} GiB free where {folder} is"
        if free < _LITTLE_SPACE:
            yield warning("disk", what, "Make room: adapters, checkpoints, files and the log of Redis grow there")
        else:
            yield ok("disk", what)


def look_at_ports(settings: Settings) -> Iterator[Finding]:
    """Yield for each port whether somebody listens; whether it is this system is for its health to say."""
    ports = {"native API": settings.port, "OpenAI API": settings.openai_port, "gRPC": settings.grpc_port}
    taken = {name: port for name, port in ports.items() if listens(settings.host, port)}
    if len(set(ports.values())) < len(ports):
        what = "two of the faces have the same port: " + ", ".join(f"{name} {port}" for name, port in ports.items())
        yield failure("ports", what, "Set CY_LLM_PORT, CY_LLM_OPENAI_PORT and CY_LLM_GRPC_PORT apart")
    for name, port in ports.items():
        state = "listened on" if name in taken else "free"
        yield ok("ports", f"{name} ({join(settings.host or '0.0.0.0', port)}): {state}")
    if 0 < len(taken) < len(ports):
        rest = ", ".join(name for name in ports if name not in taken)
        what = f"some ports are listened on and others are not ({rest}): a part is down, or another program has them"
        yield warning("ports", what, "ss -ltnp shows who listens")


def look_at_cards() -> Iterator[Finding]:
    """Yield each NVIDIA card, as its driver tells."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield ok("gpu", "no NVIDIA driver: vLLM computes on the CPU")
        return
    command = [tool, f"--query-gpu={_CARD_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        yield failure("gpu", f"the driver does not answer: {error}", "nvidia-smi must list the cards; look at dmesg")
        return
    for number, row in enumerate(listing.strip().splitlines()):
        name, driver, total, used = (word.strip() for word in row.split(","))
        yield ok("gpu", f"{number}: {name}, {used} of {total} MiB used, driver {driver}")


def look_at_packages() -> Iterator[Finding]:
    """Yield whether the packages are those that were tried together."""
    pinned = _pins(ROOT / ("requirements-cpu.txt" if shutil.which("nvidia-smi") is None else "requirements.txt"))
    found, wrong = {}, []
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
        # A build's own mark (+cpu) is no other version.
        if name in pinned and found[name].partition("+")[0] != pinned[name].partition("+")[0]:
            wrong.append(f"{name} {found[name]} instead of {pinned[name]}")
    if wrong:
        remedy = "bin/serve installs what is pinned; other versions were not tried together"
        yield warning("packages", ", ".join(wrong), remedy)
    else:
        yield ok("packages", ", ".join(f"{name} {number}" for name, number in found.items()))


def _pins(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pairs = (line.split(";")[0].strip().partition("==") for line in lines if "==" in line)
    return {name.partition("[")[0].lower(): number for name, _, number in pairs}
