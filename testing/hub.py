"""A server that speaks as much of the model hub's protocol as a download needs, and can fail like one."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from testing.stack import free_port

SHA = "0123456789abcdef0123456789abcdef01234567"
#: Files of this size and above are told with their hash, as the hub does for those of its large file storage.
_LARGE = 50_000


@dataclass
class Hub:
    """What the server has, and how it behaves."""

    #: Repository -> the folder with its files.
    repositories: dict[str, Path]
    port: int = field(default_factory=free_port)
    #: How many answers are cut in the middle of a large file.
    cuts: int = 0
    #: Bytes after which such an answer ends.
    cut_after: int = 200_000
    #: Repositories that need this token.
    gated: dict[str, str] = field(default_factory=dict)
    #: Whether it answers with a page of some proxy.
    html: bool = False
    #: Bytes a second of a large file; 0 is as fast as it goes.
    rate: int = 0
    #: Whether large files are sent with a byte changed.
    corrupt: bool = False
    #: (method, path, first byte asked for), as they came.
    asked: list[tuple[str, str, int]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving_hub(hub: Hub) -> Iterator[Hub]:
    """Serve while the block runs."""

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", hub.port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Tests read ``Hub.asked``."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        hub, path = self.served, self.path.partition("?")[0]
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0] or 0)
        hub.asked.append((self.command, path, first))
        if hub.html:
            return self._send(200, b"<html>Please log in</html>", {"Content-Type": "text/html"}, with_body)
        for name, folder in hub.repositories.items():
            allowed = name not in hub.gated or self.headers.get("Authorization") == f"Bearer {hub.gated[name]}"
            if not allowed and path.startswith((f"/api/models/{name}", f"/{name}/resolve/")):
                return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, with_body)
            if path.startswith(f"/api/models/{name}"):
                return self._send(200, json.dumps(_describe(name, folder)).encode(), {}, with_body)
            if path.startswith(f"/{name}/resolve/"):
                return self._file(folder / path.split("/", 5)[5], first, with_body)
        return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)

    def _file(self, file: Path, first: int, with_body: bool) -> None:
        hub = self.served
        if not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        status = 206 if "Range" in self.headers else 200
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        large = len(data) >= _LARGE
        if large and hub.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        body = data[first:]
        if large and with_body and hub.cuts:
            hub.cuts -= 1
            self._head(status, len(body), headers)
            self.wfile.write(body[: hub.cut_after])
            self.wfile.flush()
            self.close_connection = True
            return None
        self._head(status, len(body), headers)
        if with_body:
            step = max(1, hub.rate // 10) if large and hub.rate else len(body) or 1
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                if large and hub.rate:
                    self.wfile.flush()
                    time.sleep(0.1)
        return None

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self._head(status, len(body), headers)
        if with_body:
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def _describe(name: str, folder: Path) -> dict[str, object]:
    siblings = []
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        data = file.read_bytes()
        entry: dict[str, object] = {
            "rfilename": str(file.relative_to(folder)),
            "size": len(data),
            "blobId": hashlib.sha1(data).hexdigest(),
        }
        if len(data) >= _LARGE:
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}
        siblings.append(entry)
    return {"id": name, "modelId": name, "sha": SHA, "private": False, "tags": [], "downloads": 0, "siblings": siblings}
