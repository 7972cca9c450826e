"""A small stand-in for the hub: one data set, served as the hub's API serves it, and a list of what was asked for."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The data set `name` at the only commit there is; `downloaded` are the files whose content was asked for."""

    name: str
    files: Mapping[str, bytes]
    card: Mapping[str, Any] = field(default_factory=dict)
    downloaded: list[str] = field(default_factory=list)
    url: str = ""

    def info(self) -> dict[str, Any]:
        siblings = [{"rfilename": name} for name in self.files]
        return {"id": self.name, "sha": COMMIT, "siblings": siblings, "cardData": dict(self.card), "private": False}

    def tree(self, folder: str) -> list[dict[str, Any]]:
        """Files and folders directly in `folder` (without `/` at its end)."""
        prefix = f"{folder}/" if folder else ""
        inside = {name.removeprefix(prefix).partition("/")[0] for name in self.files if name.startswith(prefix)}
        return [self.entry(prefix + name) for name in sorted(inside)]

    def entry(self, path: str) -> dict[str, Any]:
        if path in self.files:
            return {"type": "file", "path": path, "size": len(self.files[path]), "oid": _oid(self.files[path])}
        return {"type": "directory", "path": path, "size": 0, "oid": _oid(path.encode())}

    def has(self, path: str) -> bool:
        return path in self.files or any(name.startswith(f"{path}/") for name in self.files)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at `hub.url`, for HF_ENDPOINT, while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
            paths = [path for path in asked.get("paths", []) if hub.has(path)]
            self.send(200, json.dumps([hub.entry(path) for path in paths]).encode(), with_body=True)

        def answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            api, files = f"/api/datasets/{hub.name}", f"/datasets/{hub.name}/resolve/"
            if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                self.send(200, json.dumps(hub.info()).encode(), with_body=with_body)
            elif path.startswith(f"{api}/revision/"):
                self.send(404, b"{}", error="RevisionNotFound", with_body=with_body)
            elif path.startswith(f"{api}/tree/{COMMIT}"):
                folder = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
                self.send(200, json.dumps(hub.tree(folder)).encode(), with_body=with_body)
            elif path.startswith(files):
                self.file(path.removeprefix(files).partition("/")[2], with_body=with_body)
            else:
                self.send(404, b"{}", error="RepoNotFound", with_body=with_body)

        def file(self, name: str, *, with_body: bool) -> None:
            if name not in hub.files:
                self.send(404, b"", error="EntryNotFound", with_body=with_body)
                return
            if with_body:
                hub.downloaded.append(name)
            self.send(200, hub.files[name], with_body=with_body)

        def send(self, status: int, body: bytes, *, error: str = "", with_body: bool) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{_oid(body)}"')
            if error:
                self.send_header("X-Error-Code", error)
                self.send_header("X-Error-Message", f"{error}: no such thing here")
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
