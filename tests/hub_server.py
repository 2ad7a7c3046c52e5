"""A hub of models on this machine: the calls of its API that `huggingface_hub`'s client makes.

Repositories are kept in memory. The client is the real one, told of the hub by ``HF_ENDPOINT``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


@dataclass
class Repo:
    """A repository: its commits, each all files by name."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha] = files
        return sha

    @property
    def head(self) -> str:
        return [*self.commits][-1]

    def sha(self, revision: str) -> str | None:
        return self.head if revision == "main" else revision if revision in self.commits else None


class Hub:
    """The app, and what is in it."""

    token = "hf_" + "a" * 34

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.url = ""
        one = "/api/models/{owner}/{name}"
        self.app = Starlette(
            routes=[
                Route("/api/repos/create", self.create, methods=["POST"]),
                Route("/api/validate-yaml", self.validate, methods=["POST"]),
                Route(one, self.info),
                Route(one + "/revision/{revision}", self.info),
                Route(one + "/tree/{revision}", self.tree),
                Route(one + "/preupload/{revision}", self.preupload, methods=["POST"]),
                Route(one + "/commit/{revision}", self.take, methods=["POST"]),
                Route("/{owner}/{name}/resolve/{revision}/{path:path}", self.resolve),
            ]
        )

    def environment(self, home: Path, **other: str) -> dict[str, str]:
        """What a client is to know of this hub, which other tests have told to stay offline."""
        own = {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HOME": str(home), **other}
        return {**os.environ, **own, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def repo(self, request: Request) -> tuple[str, Repo | None]:
        name = "{owner}/{name}".format(**request.path_params)
        return name, self.repos.get(name)

    def may_write(self, request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {self.token}"

    async def create(self, request: Request) -> Response:
        if not self.may_write(request):
            return refusal(401, "", "Invalid username or password.")
        asked = await request.json()
        name = f"{asked['organization']}/{asked['name']}"
        status = 409 if name in self.repos else 200
        if status == 200:
            hidden = asked.get("private") or asked.get("visibility") == "private"
            self.repos[name] = Repo(bool(hidden))
            self.repos[name].commit({".gitattributes": b""})
        return JSONResponse({"url": f"{self.url}/{name}", "id": name}, status)

    async def validate(self, request: Request) -> Response:
        text = (await request.json())["content"]
        assert text.startswith("---\n")
        return JSONResponse({"errors": [], "warnings": []})

    async def info(self, request: Request) -> Response:
        name, repo = self.repo(request)
        if repo is None:
            return refusal(404, "RepoNotFound", "Repository not found")
        sha = repo.sha(request.path_params.get("revision", "main"))
        if sha is None:
            return refusal(404, "RevisionNotFound", "Invalid rev id")
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        about = {"_id": "0", "id": name, "sha": sha, "private": repo.private, "tags": []}
        return JSONResponse(about | {"siblings": siblings, "downloads": 0, "likes": 0})

    async def tree(self, request: Request) -> Response:
        repo = self.repo(request)[1]
        files = repo.commits[repo.sha(request.path_params["revision"])]
        return JSONResponse(
            [
                {"type": "file", "path": path, "size": len(data), "oid": etag(data)}
                for path, data in files.items()
            ]
        )

    async def preupload(self, request: Request) -> Response:
        files = (await request.json())["files"]
        told = [
            {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files
        ]
        return JSONResponse({"files": told})

    async def take(self, request: Request) -> Response:
        name, repo = self.repo(request)
        if not self.may_write(request):
            return refusal(403, "", "Forbidden")
        files = dict(repo.commits[repo.head])
        for line in (await request.body()).splitlines():
            asked = json.loads(line)
            value = asked["value"]
            if asked["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif asked["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(files)
        url = f"{self.url}/{name}/commit/{sha}"
        return JSONResponse({"success": True, "commitOid": sha, "commitUrl": url})

    async def resolve(self, request: Request) -> Response:
        repo = self.repo(request)[1]
        sha = repo and repo.sha(request.path_params["revision"])
        data = None if sha is None else repo.commits[sha].get(request.path_params["path"])
        if data is None:
            return refusal(404, "EntryNotFound", "Entry not found")
        headers = {"etag": f'"{etag(data)}"', "x-repo-commit": sha}
        return Response(data, headers=headers, media_type="application/octet-stream")


def etag(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def refusal(status: int, code: str, message: str) -> Response:
    headers: dict[str, Any] = {"x-error-code": code, "x-error-message": message}
    return JSONResponse({"error": message}, status, headers=headers)


@contextmanager
def running() -> Iterator[Hub]:
    """A hub at a free port of this machine."""
    hub = Hub()
    config = uvicorn.Config(hub.app, port=0, log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="hub")
    thread.start()
    while not server.started:
        time.sleep(0.01)
    hub.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join()
