"""Makes ``.venv`` and installs a pinned set into it: with uv where it can be had, else with pip.

Run by ``bin/serve`` and ``bin/test`` with the machine's own Python: the standard library alone. A ``.venv`` that is
half-made, was moved with its folder, or whose Python is gone, is made anew. Two starts at once wait for each other.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Of the package index, as pip finds it.
UV = "uv==0.13.9"
#: What pip alone installs: PyTorch publishes its CPU build on an index of its own, which pip may have been told of.
_BY_PIP = re.compile(r"torch==")
_NAME = re.compile(r"[A-Za-z0-9]")
_PIP = ("-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--progress-bar", "off")


class CannotInstall(Exception):
    """The set cannot be installed; the message says what to do."""


def main(files: Sequence[str]) -> int:
    """Install what the requirement files name into ``.venv`` of the current folder."""
    root = Path.cwd()
    (root / "var" / "log").mkdir(parents=True, exist_ok=True)
    with (root / "var" / "venv.lock").open("w") as lock:
        _lock(lock.fileno())
        try:
            Venv(root, [Path(file) for file in files]).ensure()
        except CannotInstall as error:
            print(f"[cy-llm] {error}", file=sys.stderr)
            return 1
    return 0


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _say("another start is installing; waiting for it")
        fcntl.flock(descriptor, fcntl.LOCK_EX)


class Venv:
    """The environment of one checkout."""

    def __init__(self, root: Path, files: Sequence[Path]) -> None:
        self._root = root
        self._folder = root / ".venv"
        self._python = str(self._folder / "bin" / "python")
        self._lines = [
            line.strip()
            for file in files
            for line in (root / file).read_text(encoding="utf-8").splitlines()
            if _NAME.match(line.strip())
        ]
        self._log = root / "var" / "log" / "install.log"

    @property
    def stamp(self) -> Path:
        """A file that is there once everything is: its name holds what, for which Python, and where."""
        what = "\n".join([*self._lines, str(self._folder), sys.version])
        return self._folder / f".installed-{hashlib.sha256(what.encode()).hexdigest()[:16]}"

    def ensure(self) -> None:
        """Install, unless it was done. Raises ``CannotInstall``."""
        if self.stamp.exists() and self._works():
            return
        started = time.monotonic()
        if not self._works():
            self._make()
        _say(f"installing {len(self._lines)} packages, several GB; this is done once")
        self._log.write_bytes(b"")
        by_pip = [line for line in self._lines if _BY_PIP.match(line)]
        if self._install_with_uv([line for line in self._lines if not _BY_PIP.match(line)]):
            self._install_with_pip(by_pip)
        else:
            _say("uv cannot install here, pip does (slower)")
            self._install_with_pip(self._lines)
        for old in self._folder.glob(".installed-*"):
            old.unlink()
        self.stamp.touch()
        _say(f"installed after {time.monotonic() - started:.0f} s")

    def _works(self) -> bool:
        """Whether the environment can be used: made to its end, here, by a Python that is still there."""
        code = "import sys, pip; print(sys.prefix, '%d.%d' % sys.version_info[:2])"
        try:
            done = subprocess.run([self._python, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
        wanted = f"{self._folder} {sys.version_info[0]}.{sys.version_info[1]}"
        return done.returncode == 0 and done.stdout.strip() == wanted and self._scripts_fit()

    def _scripts_fit(self) -> bool:
        """Whether scripts name this folder's Python: those of a moved one name the old place."""
        for name in ("pip", "celery"):
            script = self._folder / "bin" / name
            if script.exists():
                first = script.read_bytes()[:300]
                if str(self._folder).encode() not in first:
                    return False
        return True

    def _make(self) -> None:
        if self._folder.is_symlink():
            raise CannotInstall(".venv is a link to an environment that cannot be used; remove the link")
        if self._folder.exists():
            _say(".venv is half-made, or was moved; it is made anew")
            shutil.rmtree(self._folder)
        done = subprocess.run([sys.executable, "-m", "venv", str(self._folder)], check=False)
        if done.returncode != 0:
            raise CannotInstall(
                f"{sys.executable} -m venv failed (on Debian it needs python3-venv); free some space and try again"
            )

    def _install_with_uv(self, lines: Sequence[str]) -> bool:
        if not self._run([self._python, *_PIP, "-q", UV]):
            return False
        options = uv_options(pip_configuration(self._python))
        command = [str(self._folder / "bin" / "uv"), "pip", "install", "--python", self._python, "--no-deps"]
        return self._run([*command, "--compile-bytecode", *options, "-r", self._write("uv", lines)], shown=True)

    def _install_with_pip(self, lines: Sequence[str]) -> None:
        if not lines or self._run([self._python, *_PIP, "-r", self._write("pip", lines)]):
            return
        if "No matching distribution found for torch==" in self._log.read_text(errors="replace"):
            self._install_usual_torch(lines)
            return
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-5:])
        raise CannotInstall(f"pip failed; {self._log} has its output. Its last lines:\n{tail}")

    def _install_usual_torch(self, lines: Sequence[str]) -> None:
        """Where pip does not know PyTorch's CPU index, the build of the usual one serves as well, only larger."""
        [torch] = [line for line in lines if _BY_PIP.match(line)]
        usual = torch.partition("+")[0]
        _say(f"pip does not know PyTorch's CPU index; installing the usual build ({usual}) instead, some 4 GB larger")
        _say("(a smaller one: stop, set PIP_EXTRA_INDEX_URL to the CPU index named on PyTorch's 'Get Started' page)")
        # With what it needs: CUDA's libraries are packages of their own.
        if not self._run([self._python, "-m", "pip", "install", "--disable-pip-version-check", "-q", usual]):
            raise CannotInstall(f"pip cannot install {usual}; {self._log} has its output")
        self._install_with_pip([line for line in lines if not _BY_PIP.match(line)])

    def _write(self, name: str, lines: Sequence[str]) -> str:
        path = self._root / "var" / f"requirements-{name}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    def _run(self, command: Sequence[str], shown: bool = False) -> bool:
        """Run, with the output in the log; ``shown``: on a terminal also there, where uv's progress moves."""
        if shown and sys.stderr.isatty():
            return subprocess.run(command, check=False).returncode == 0
        with self._log.open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            started = time.monotonic()
            while True:
                try:
                    return process.wait(timeout=10) == 0
                except subprocess.TimeoutExpired:
                    _say(f"… {time.monotonic() - started:.0f} s ({self._log} has the details)")


def pip_configuration(python: str) -> dict[str, str]:
    """Return what pip is configured with, by file and by environment: option -> value; the environment wins."""
    done = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    found: dict[str, str] = {}
    by_environment: dict[str, str] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        value = value.strip().strip("'\"").replace("\\n", " ")
        (by_environment if section.startswith(":env:") else found)[option.strip().replace("_", "-")] = value
    return {**found, **by_environment}


def uv_options(configuration: Mapping[str, str]) -> list[str]:
    """Return pip's indexes, folders and proxies as options of uv, which does not read pip's configuration.

    The certificates go into the environment of this process. Of several indexes the best version counts, as with pip.
    """
    options: list[str] = []
    if configuration.get("index-url"):
        options += ["--default-index", configuration["index-url"]]
    for url in configuration.get("extra-index-url", "").split():
        if not url.startswith("file:") or Path(url.removeprefix("file://")).is_dir():
            options += ["--index", url]
    for place in configuration.get("find-links", "").split():
        options += ["--find-links", place]
    for host in configuration.get("trusted-host", "").split():
        options += ["--allow-insecure-host", host]
    if configuration.get("no-index", "").lower() in ("true", "1", "yes", "on"):
        options.append("--no-index")
    if configuration.get("cert"):
        os.environ.setdefault("SSL_CERT_FILE", configuration["cert"])
    if configuration.get("proxy"):
        os.environ.setdefault("ALL_PROXY", configuration["proxy"])
    return [*options, "--index-strategy", "unsafe-best-match"]


def _say(words: str) -> None:
    print(f"[cy-llm] {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
