"""The Hugging Face mirror: with HF_ENDPOINT and HF_TOKEN every client of the hub is a client of the shelf.

What it answers is what the hub's own clients ask: a repository at a revision, its files, and each file by ranges. Whoever
has the token may read whatever the daemon's own token may.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from aiohttp import web

from hotshelf_daemon.acquire import HubFile, Repositories, Repository
from hotshelf_daemon.shelf import Shelf
from hotshelf_shared.errors import AccessDenied, HotshelfError, NotFound, UnsafeContent

log = logging.getLogger(__name__)
T = TypeVar("T")
#: How often whoever waits for a file is told that it is on its way, seconds.
SAY_S = 3.0
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_REPO = r"{org:[\w][\w.-]*}/{name:[\w][\w.-]*}"


def add_to(app: web.Application, shelf: Shelf, repositories: Repositories) -> None:
    mirror = _Mirror(shelf, repositories)
    app.on_response_prepare.append(_name_version)
    for path, handler in (
        (f"/api/models/{_REPO}", mirror.info),
        (f"/api/models/{_REPO}/revision/{{rev}}", mirror.info),
        (f"/api/models/{_REPO}/tree/{{rev}}", mirror.tree),
        (f"/api/models/{_REPO}/tree/{{rev}}/{{folder:.+}}", mirror.tree),
        (f"/{_REPO}/resolve/{{rev}}/{{path:.+}}", mirror.resolve),
    ):
        app.router.add_get(path, mirror.let_in(handler))


class _Mirror:
    def __init__(self, shelf: Shelf, repositories: Repositories) -> None:
        self._shelf, self._repositories = shelf, repositories
        token = shelf.settings.hub_mirror.token
        assert token is not None
        self._token = hashlib.sha256(token.get_secret_value().encode()).digest()

    def let_in(self, handler: Handler) -> Handler:
        async def checked(request: web.Request) -> web.StreamResponse:
            scheme, _, told = request.headers.get("Authorization", "").partition(" ")
            given = hashlib.sha256(told.strip().encode(errors="surrogateescape")).digest()
            if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._token):
                return _refusal(401, None, "HF_TOKEN must be the mirror's own token (hub_mirror.token)")
            try:
                return await handler(request)
            except HotshelfError as error:
                return _refused(error, request)

        return checked

    async def info(self, request: web.Request) -> web.StreamResponse:
        repository = await self._asked(request)
        name = f"{repository.organisation}/{repository.name}"
        return _json(
            {
                "_id": "hotshelf", "id": name, "modelId": name, "sha": repository.commit, "private": False, "gated": False,
                "disabled": False, "tags": [], "downloads": 0, "likes": 0,
                "siblings": [{"rfilename": path, "size": file.size} for path, file in sorted(repository.files.items())],
            }
        )  # fmt: skip

    async def tree(self, request: web.Request) -> web.StreamResponse:
        repository, folder = await self._asked(request), request.match_info.get("folder", "").strip("/")
        below = f"{folder}/" if folder else ""
        files = {path: file for path, file in repository.files.items() if path.startswith(below)}
        if folder and not files:
            return _refusal(404, "EntryNotFound", f"there is no folder {folder}")
        if request.query.get("recursive", "false").lower() == "true":
            names = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
            entries = [_folder(name) for name in sorted(names) if name.startswith(below)]
            return _json([*entries, *(_entry(path, file) for path, file in sorted(files.items()))])
        direct = {path.removeprefix(below).partition("/")[0] for path in files if "/" in path.removeprefix(below)}
        near = {path: file for path, file in files.items() if "/" not in path.removeprefix(below)}
        return _json([*(_folder(below + name) for name in sorted(direct)), *(_entry(p, f) for p, f in sorted(near.items()))])

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        repository, path = await self._asked(request), request.match_info["path"]
        file = repository.files.get(path)
        told = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if file is not None:
            told |= {"ETag": f'"{file.version}"', "X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.version}"'}
            if request.method == "HEAD":
                return web.Response(headers={**told, "Content-Length": str(file.size), "Content-Type": _BYTES})
        try:
            digest = await _patiently(request, self._repositories.blob(repository, path))
        except NotFound as error:
            return _refusal(404, "EntryNotFound", error.message, told)
        where = self._shelf.layout.path("blobs", "sha256", digest.hex[:2], digest.hex)
        response = web.FileResponse(where, headers={**told, "Content-Type": _BYTES})
        response["etag"] = told.get("ETag", "")
        return response

    async def _asked(self, request: web.Request) -> Repository:
        asked = request.match_info
        return await _patiently(request, self._repositories.at(asked["org"], asked["name"], asked.get("rev", "main")))


async def _patiently(request: web.Request, work: Coroutine[Any, Any, T]) -> T:
    """Clients give up what says nothing for ten seconds. Interim answers, which all of them pass over, say that it goes on."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=SAY_S))[0]:
            if request.transport is not None and _passes_over(request):
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return task.result()
    finally:
        task.cancel()


def _passes_over(request: web.Request) -> bool:
    """Interim answers that it did not ask for: Python's clients do, Node's break off."""
    agent = request.headers.get("User-Agent", "").lower()
    return request.version >= (1, 1) and any(
        name in agent for name in ("python", "hf_hub", "transformers", "diffusers", "curl")
    )


_BYTES = "application/octet-stream"


async def _name_version(_request: web.BaseRequest, response: web.StreamResponse) -> None:
    """What the hub calls the file's content, instead of what the file on the disk is to aiohttp."""
    if etag := response.get("etag"):
        response.headers["ETag"] = etag


def _entry(path: str, file: HubFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.version[:40]}
    if file.digest is not None:
        entry["lfs"] = {"oid": file.digest.hex, "size": file.size, "pointerSize": 0}
    return entry


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()}


def _json(body: Any) -> web.Response:
    return web.Response(body=json.dumps(body).encode(), content_type="application/json")


def _refused(error: HotshelfError, request: web.Request) -> web.Response:
    """As the hub says it, so that its clients raise what they would there."""
    said = f"{error.message} {error.hint}".strip()
    if isinstance(error, NotFound):
        return _refusal(404, "RevisionNotFound" if "revision" in error.message else "RepoNotFound", said)
    if isinstance(error, AccessDenied | UnsafeContent):
        return _refusal(403, "GatedRepo" if isinstance(error, AccessDenied) else None, said)
    log.warning("the mirror could not answer", extra={"path": request.path, "code": error.code, "why": error.message})
    return _refusal(error.status, None, said)


def _refusal(status: int, code: str | None, said: str, told: Mapping[str, str] | None = None) -> web.Response:
    one_line = " ".join(said.split())
    named = {"X-Error-Code": code} if code else {}
    headers = {**(told or {}), "X-Error-Message": one_line.encode("ascii", "replace").decode(), **named}
    return web.Response(
        body=json.dumps({"error": one_line}).encode(), status=status, headers=headers, content_type="application/json"
    )
