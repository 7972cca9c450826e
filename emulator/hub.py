"""A stand-in of the model hub (`emulator start --hub`): a few repositories of our own, served as the hub's API does.

huggingface.co/docs/hub/api and huggingface.co/docs/huggingface_hub/package_reference/environment_variables. It answers
on loopback, without a token; clients find it by HF_ENDPOINT, and keep what they download apart from the real hub's.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from emulator.home import PROJECT, Home

COMMIT = hashlib.sha1(b"the only commit there is").hexdigest()
REVISION = "main|[0-9a-f]{40}"  # a commit that is pinned for the real hub is answered with the only one there is


def prepare(home: Home) -> None:
    """Make the repositories, once."""
    folder = home.path / "hub"
    if not (folder / "complete").exists():
        command = [sys.executable, "-m", "emulator.hub_content", str(folder)]
        subprocess.run(command, check=True, cwd=PROJECT)
        (folder / "complete").touch()


def app(home: Home) -> Starlette:
    return Starlette(routes=Hub(home.path / "hub").routes)


class Hub:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.routes = []
        name = "{owner}/{repo}"
        for kind, prefix in (("models", ""), ("datasets", "/datasets")):
            api = f"/api/{kind}/{name}"
            self.routes += [
                self._route(api, kind, self.info),
                self._route(f"{api}/revision/{{revision}}", kind, self.info),
                self._route(f"{api}/tree/{{revision}}", kind, self.tree),
                self._route(f"{api}/tree/{{revision}}/{{path:path}}", kind, self.tree),
                self._route(f"{api}/paths-info/{{revision}}", kind, self.paths, "POST"),
                self._route(f"{prefix}/{name}/resolve/{{revision}}/{{path:path}}", kind, self.file),
            ]

    def _route(self, path: str, kind: str, handler: Any, *methods: str) -> Route:
        async def answer(request: Request) -> Response:
            folder = self._folder / kind / request.path_params["owner"] / request.path_params["repo"]
            if not folder.is_dir():
                return _missing("RepoNotFound")
            if not re.fullmatch(REVISION, request.path_params.get("revision", "main")):
                return _missing("RevisionNotFound")
            found: Response = await handler(request, folder)
            found.headers["X-Repo-Commit"] = COMMIT
            return found

        return Route(path, answer, methods=list(methods) or ["GET", "HEAD"])

    async def info(self, request: Request, folder: Path) -> Response:
        head = (folder / "README.md").read_text().split("---\n")[1]
        card = yaml.safe_load(head)
        owner, repo = request.path_params["owner"], request.path_params["repo"]
        siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in _files(folder)]
        return JSONResponse(
            {
                "_id": COMMIT[:24],
                "id": f"{owner}/{repo}",
                "modelId": f"{owner}/{repo}",
                "author": owner,
                "sha": COMMIT,
                "private": False,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "lastModified": "2024-01-01T00:00:00.000Z",
                "createdAt": "2024-01-01T00:00:00.000Z",
                "siblings": siblings,
                "cardData": card,
                **{key: card[key] for key in ("pipeline_tag", "library_name") if key in card},
            }
        )

    async def tree(self, request: Request, folder: Path) -> Response:
        below = folder / request.path_params.get("path", "")
        if not below.resolve().is_relative_to(folder.resolve()) or not below.is_dir():
            return _missing("EntryNotFound")
        paths = below.rglob("*") if request.query_params.get("recursive", "").lower() == "true" else below.iterdir()
        return JSONResponse([_entry(folder, path) for path in sorted(paths)])

    async def paths(self, request: Request, folder: Path) -> Response:
        body = await request.body()
        if "json" in request.headers.get("content-type", ""):
            asked = json.loads(body or b"{}").get("paths", [])
        else:
            asked = [value for key, value in parse_qsl(body.decode(errors="replace")) if key == "paths"]
        found = [folder / str(path) for path in asked]
        return JSONResponse([_entry(folder, path) for path in found if path.exists()])

    async def file(self, request: Request, folder: Path) -> Response:
        path = (folder / request.path_params["path"]).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            return _missing("EntryNotFound")
        return FileResponse(path, headers={"ETag": f'"{_digest(path)}"'})


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": hashlib.sha1(name.encode()).hexdigest()}
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _digest(path)}


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _missing(code: str) -> Response:
    message = {"X-Error-Code": code, "X-Error-Message": f"{code}: the local stand-in of the hub does not have it"}
    return JSONResponse({"error": message["X-Error-Message"]}, 404, message)
