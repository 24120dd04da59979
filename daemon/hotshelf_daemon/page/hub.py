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
import os
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qs

from aiohttp import web

from hotshelf_daemon.acquire import HubFile, Repositories, Repository
from hotshelf_daemon.page import sending
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.views import ORGANISATION
from hotshelf_shared.errors import AccessDenied, Busy, HotshelfError, InsufficientSpace, NotFound, UnsafeContent

log = logging.getLogger(__name__)
T = TypeVar("T")
#: How often whoever waits for a file is told that it is on its way, seconds.
SAY_S = 3.0
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
#: No organisation of the hub may be called as its own pages are.
_REPO = r"{org:(?!(?:api|datasets|spaces)/)[\w][\w.-]*}/{name:[\w][\w.-]*}"
_OF_OTHERS = re.compile(r"/(api/)?(datasets|spaces)/")
_NO_ORGANISATION = re.compile(r"/(?:api/models/([^/]+)(?:/(?:revision|tree)/.+)?|([^/]+)/resolve/.+)\Z")


def add_to(app: web.Application, shelf: Shelf, repositories: Repositories) -> None:
    mirror = _Mirror(shelf, repositories)
    for path, handler in (
        ("/api/whoami-v2", mirror.whoami),
        (f"/api/models/{_REPO}", mirror.info),
        (f"/api/models/{_REPO}/auth-check", mirror.check),
        (f"/api/models/{_REPO}/revision/{{rev}}", mirror.info),
        (f"/api/models/{_REPO}/tree/{{rev}}", mirror.tree),
        (f"/api/models/{_REPO}/tree/{{rev}}/{{folder:[\\s\\S]+}}", mirror.tree),
        (f"/{_REPO}/resolve/{{rev}}/{{path:[\\s\\S]+}}", mirror.resolve),
    ):
        app.router.add_get(path, mirror.let_in(handler))
    app.router.add_post(f"/api/models/{_REPO}/paths-info/{{rev}}", mirror.let_in(mirror.paths))
    app.router.add_route("*", r"/{rest:[\s\S]*}", mirror.let_in(mirror.unserved))


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
                "siblings": [_sibling(path, file) for path, file in sorted(repository.files.items())],
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

    async def paths(self, request: web.Request) -> web.StreamResponse:
        """Of some files and folders, by name; what is not there is left out."""
        form = parse_qs((await request.read()).decode(errors="replace"))
        repository = await self._asked(request)
        folders = {"/".join(path.split("/")[:depth]) for path in repository.files for depth in range(1, path.count("/") + 1)}
        wanted = dict.fromkeys(path.strip("/") for path in form.get("paths", ()))
        found = (
            _entry(path, repository.files[path]) if path in repository.files else _folder(path)
            for path in wanted
            if path in repository.files or path in folders
        )
        return _json([*found])

    async def whoami(self, _request: web.Request) -> web.StreamResponse:
        """Whoever has the token, who may read."""
        token = {"displayName": "the mirror's own", "role": "read"}
        return _json(
            {
                "type": "user",
                "id": "hotshelf",
                "name": "hotshelf",
                "fullname": "hotshelf",
                "orgs": [],
                "auth": {"accessToken": token},
            }
        )

    async def check(self, request: web.Request) -> web.StreamResponse:
        await self._asked(request)
        return _json({})

    async def unserved(self, request: web.Request) -> web.StreamResponse:
        """All that clients may ask of the hub and not of this: what they raise says so."""
        if _OF_OTHERS.match(request.path):
            return _refusal(404, "RepoNotFound", "The mirror has models, and no datasets or spaces.")
        if (found := _NO_ORGANISATION.match(request.path)) is not None:
            name = found[1] or found[2]
            said = f"{name} names no organisation: the hub calls it ORG/{name}, and the mirror knows that name alone."
            return _refusal(404, "RepoNotFound", said)
        said = f"The mirror does not answer {request.method} {request.path}: it tells what models have, and sends their files."
        return _refusal(404, None, said)

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        repository, path = await self._asked(request), request.match_info["path"]
        told = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if (file := repository.files.get(path)) is None:
            why = repository.skipped.get(path)
            there_is = f"{repository.organisation}/{repository.name} has no {path} at {repository.commit}"
            said = there_is if why is None else f"{path} is not served: {why}"
            return _refusal(404, "EntryNotFound", said, told)
        etag = f'"{_etag(repository, path, file)}"'
        told |= {"ETag": etag, "X-Linked-Size": str(file.size), "X-Linked-ETag": etag, "Content-Type": _BYTES}
        if (answer := sending.answered(request, etag, told)) is not None:
            return answer
        if request.method == "HEAD":
            return web.Response(headers={**told, "Content-Length": str(file.size)})
        try:
            opened = await _patiently(request, self._repositories.open(repository, path))
        except UnsafeContent as error:
            return _refusal(403, None, f"{error.message}. {error.hint}", {"X-Repo-Commit": repository.commit})
        with opened:
            return await sending.send(request, opened, os.fstat(opened.fileno()).st_size, told)

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


#: Characters that are said of what went wrong: a header has to hold them.
_LONGEST = 1_000
_BYTES = "application/octet-stream"
_ETAG = re.compile(r"[0-9A-Za-z]{8,128}\Z")


def _etag(repository: Repository, path: str, file: HubFile) -> str:
    """What the hub calls the content, which clients call their copy by; where that is no such name, the commit's own file."""
    if _ETAG.match(file.version):
        return file.version
    return hashlib.sha256(f"{repository.commit}/{path}".encode()).hexdigest()


def _entry(path: str, file: HubFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.version[:40]}
    if file.digest is not None:
        entry["lfs"] = {"oid": file.digest.hex, "size": file.size, "pointerSize": 0}
    return entry


def _sibling(path: str, file: HubFile) -> dict[str, Any]:
    return {"rfilename": path, "size": file.size, "blobId": file.version[:40]} | (
        {"lfs": {"sha256": file.digest.hex, "size": file.size, "pointerSize": 0}} if file.digest is not None else {}
    )


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()}


def _json(body: Any) -> web.Response:
    return web.Response(body=json.dumps(body).encode(), content_type="application/json")


def _refused(error: HotshelfError, request: web.Request) -> web.Response:
    """As the hub says it, so that its clients raise what they would there, and with what is said here."""
    said = f"{error.message}. {error.hint}"
    if isinstance(error, NotFound) and error.details.get("missing") == "revision":
        return _refusal(404, "RevisionNotFound", said)
    if isinstance(error, NotFound | AccessDenied) and request.match_info.get("org") != ORGANISATION:
        said = f"{error.message}. It is with a token of its own, not with yours, that hotshelfd asks the hub."
    if isinstance(error, NotFound):
        return _refusal(404, "RepoNotFound", said)
    if isinstance(error, AccessDenied | UnsafeContent):
        return _refusal(403, "GatedRepo", said)  # any other 403 is to them a hub that cannot be reached
    log.warning("the mirror could not answer", extra={"path": request.path, "code": error.code, "why": error.message})
    # That there is no room just now is a status of which clients ask again.
    return _refusal(Busy.status if isinstance(error, InsufficientSpace) else error.status, None, said)


def _refusal(status: int, code: str | None, said: str, told: Mapping[str, str] | None = None) -> web.Response:
    one_line = "".join(char if char.isprintable() else " " for char in said)[:_LONGEST]
    named = {"X-Error-Code": code} if code else {}
    headers = {**(told or {}), "X-Error-Message": one_line.replace("…", "...").encode("ascii", "replace").decode(), **named}
    return web.Response(
        body=json.dumps({"error": one_line}).encode(), status=status, headers=headers, content_type="application/json"
    )
