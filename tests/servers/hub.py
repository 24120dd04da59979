"""The Hugging Face Hub as its clients see it, on two ports of loopback: the hub itself, and the CDN that it redirects to.

It speaks what huggingface_hub 2.4 asks when it downloads: model info, the tree in pages, `auth-check`, `resolve` with its
headers; `tests.test_servers` lets `snapshot_download` itself judge. Repositories are commits of trees; weights lie in LFS.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast
from urllib.parse import quote, unquote

from tests.servers.threaded import Ask, Reply, ThreadedServer, ranged

LFS_ENDINGS = (".bin", ".ckpt", ".gguf", ".onnx", ".pt", ".safetensors")
_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|auth-check)(?:/([^/]+)(?:/(.*))?)?)?\Z")
#: Where `resolve` leads for what git keeps.
_CACHED = re.compile(r"/api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/(.+)\Z")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)\Z")


def git_name(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()


Spoil = Callable[[Ask, Reply], None]


@dataclass(slots=True)
class Repo:
    """`refs` are branches and tags; `readers` the tokens that a private or gated one lets in."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: str | bool = False
    readers: set[str] = field(default_factory=set)


class Hub:
    """`with Hub() as hub:`; `tokens` are those that somebody has. `asked` is every request in the order of arrival."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, page_entries: int = 1_000) -> None:
        self.page_entries = page_entries
        self.repos: dict[str, Repo] = {}
        self.tokens: set[str] = set()
        #: Old names of repositories: the hub redirects.
        self.moved: dict[str, str] = {}
        self.asked: list[Ask] = []
        self.is_down = False
        self._spoils: list[tuple[Spoil, str, re.Pattern[str]]] = []
        self._lfs: dict[str, bytes] = {}
        self._signature, self._commits = 0, itertools.count(1)
        self._lock = threading.Lock()
        self._hub, self._cdn = (ThreadedServer(name, self.reply, tls) for name in ("hub", "cdn"))

    @property
    def endpoint_url(self) -> str:
        return self._hub.url

    @property
    def cdn_url(self) -> str:
        return self._cdn.url

    # ---- what it holds

    def push(self, repo: str, tree: Mapping[str, bytes], *, branch: str = "main", **more: bytes) -> str:
        """A commit of exactly these files, and the branch moved to it."""
        files = {**tree, **more}
        commit = hashlib.sha1(f"{next(self._commits)} {repo}".encode()).hexdigest()
        with self._lock:
            held = self.repos.setdefault(repo, Repo())
            held.commits[commit], held.refs[branch] = files, commit
            self._lfs.update((hashlib.sha256(data).hexdigest(), data) for path, data in files.items() if _is_lfs(path))
        return commit

    def gate(self, repo: str, *readers: str) -> None:
        """Everybody sees it; only these tokens may read its files."""
        self.repos[repo].gated, self.repos[repo].readers = "auto", set(readers)
        self.tokens |= set(readers)

    def hide(self, repo: str, *readers: str) -> None:
        """Private: to anybody else it is not there."""
        self.repos[repo].private, self.repos[repo].readers = True, set(readers)
        self.tokens |= set(readers)

    # ---- how it behaves

    def misdeed(self, spoil: Spoil, *, server: str = "hub", path: str = "", times: int | None = None) -> None:
        """Spoils answers to requests whose path matches, so many of them."""
        left = itertools.count() if times is None else iter(range(times))

        def some(ask: Ask, reply: Reply) -> None:
            if next(left, None) is not None:
                spoil(ask, reply)

        self._spoils.append((some, server, re.compile(path)))

    def refuse(self, status: int, *, server: str = "hub", path: str = "", times: int | None = None, **headers: str) -> None:
        def spoil(_ask: Ask, reply: Reply) -> None:
            told = {name.replace("_", "-"): value for name, value in headers.items()}
            reply.status, reply.headers, reply.body = status, told, b"no"

        self.misdeed(spoil, server=server, path=path, times=times)

    def corrupt(self, *, server: str = "cdn", path: str = "", times: int | None = None) -> None:
        """One bit of each body is another."""

        def spoil(_ask: Ask, reply: Reply) -> None:
            if reply.status in (200, 206) and reply.body:
                reply.body = bytes([reply.body[0] ^ 1]) + reply.body[1:]

        self.misdeed(spoil, server=server, path=path, times=times)

    def heal(self) -> None:
        self._spoils.clear()

    def expire(self) -> None:
        """No address that was signed so far is good any more."""
        self._signature += 1

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Both hang up on everybody."""
        self.is_down = True
        yield
        self.is_down = False

    def asked_of(self, server: str, path: str = "") -> list[Ask]:
        return [ask for ask in self.asked if ask.server == server and re.search(path, ask.path)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hub.close()
        self._cdn.close()

    # ---- answers

    def reply(self, ask: Ask) -> Reply | None:
        """None hangs up."""
        self.asked.append(ask)
        if self.is_down:
            return None
        with self._lock:
            reply = self._of_hub(ask) if ask.server == "hub" else self._of_cdn(ask)
        for spoil, server, path in tuple(self._spoils):
            if server == ask.server and path.search(ask.path):
                spoil(ask, reply)
        return reply

    def _of_hub(self, ask: Ask) -> Reply:
        if ask.token is not None and ask.token not in self.tokens:
            return _error(401, None, "Invalid credentials in Authorization header")
        if found := _API.match(ask.path):
            name, verb, rev, path = found[1], found[2], unquote(found[3] or "main"), unquote(found[4] or "")
        elif found := _RESOLVE.match(ask.path) or _CACHED.match(ask.path):
            name, verb, rev, path = found[1], "resolve", unquote(found[2]), unquote(found[3])
        else:
            return _error(404, None, "Sorry, we can't find the page you are looking for.")
        if name in self.moved:
            query = f"?{'&'.join(f'{k}={v}' for k, values in ask.query.items() for v in values)}" if ask.query else ""
            return Reply(307, {"Location": ask.path.replace(name, self.moved[name], 1) + query})
        return self._of_repo(ask, name, cast(str, verb or "revision"), rev, path)

    def _of_repo(self, ask: Ask, name: str, verb: str, rev: str, path: str) -> Reply:
        repo = self.repos.get(name)
        lets_in = repo is not None and ask.token in repo.readers
        if repo is None or (repo.private and not lets_in):
            return _error(404 if ask.token else 401, "RepoNotFound", "Repository not found")
        if repo.gated and not lets_in and verb in ("resolve", "auth-check"):
            said = f"Access to model {name} is restricted and you are not in the authorized list."
            return _error(403 if ask.token else 401, "GatedRepo", said)
        if verb == "auth-check":
            return _json({})
        commit = repo.refs.get(rev, rev)
        if (tree := repo.commits.get(commit)) is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        if verb == "revision":
            return _json(_info(name, repo, commit, tree, ask.query))
        return self._tree(ask, tree, path) if verb == "tree" else self._resolve(ask, name, tree, commit, path)

    def _tree(self, ask: Ask, tree: Mapping[str, bytes], folder: str) -> Reply:
        below = f"{folder}/" if folder else ""
        entries = [entry for entry in _entries(tree) if entry["path"].startswith(below)]
        if folder and not entries:
            return _error(404, "EntryNotFound", f"{folder} does not exist")
        if ask.query.get("recursive", ["false"])[0].lower() != "true":
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(below)]
        at = int(ask.query.get("cursor", ["0"])[0])
        page, left = entries[at : at + self.page_entries], entries[at + self.page_entries :]
        reply = _json(page)
        if left:
            kept = "&".join(f"{key}={quote(values[0])}" for key, values in ask.query.items() if key != "cursor")
            reply.headers["Link"] = f'<{self.endpoint_url}{ask.path}?{kept}&cursor={at + len(page)}>; rel="next"'
        return reply

    def _resolve(self, ask: Ask, name: str, tree: Mapping[str, bytes], commit: str, path: str) -> Reply:
        if (data := tree.get(path)) is None:
            return _error(404, "EntryNotFound", "Entry not found")
        told = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not _is_lfs(path):
            told |= {"ETag": f'"{git_name(data)}"', "Content-Type": "text/plain; charset=utf-8"}
            if _CACHED.match(ask.path):
                return ranged(ask, data, told)
            where = f"/api/resolve-cache/models/{name}/{commit}/{quote(path)}?etag=%22{git_name(data)}%22"
            return Reply(307, {**told, "X-Linked-Size": str(len(data)), "Location": where})
        sha256 = hashlib.sha256(data).hexdigest()
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{sha256}"'}
        where = f"{self.cdn_url}/objects/{sha256}?Expires=1&Signature=signed-{self._signature}"
        return Reply(302, {**told, **linked, "Location": where})

    def _of_cdn(self, ask: Ask) -> Reply:
        data = self._lfs.get(ask.path.removeprefix("/objects/"))
        if data is None or ask.query.get("Signature") != [f"signed-{self._signature}"]:
            return Reply(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
        return ranged(ask, data, {"ETag": f'"{hashlib.md5(data).hexdigest()}-1"', "Accept-Ranges": "bytes"})


def _is_lfs(path: str) -> bool:
    return path.endswith(LFS_ENDINGS)


def _info(name: str, repo: Repo, commit: str, tree: Mapping[str, bytes], query: Mapping[str, list[str]]) -> dict[str, Any]:
    info = {
        "_id": "1", "id": name, "modelId": name, "sha": commit, "private": repo.private, "gated": repo.gated, "disabled": False,
        "tags": [], "downloads": 0, "likes": 0, "siblings": [{"rfilename": path} for path in sorted(tree)],
    }  # fmt: skip
    return {key: value for key, value in info.items() if key in ("_id", "id", *query["expand"])} if "expand" in query else info


def _entries(tree: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
    folders = {"/".join(path.split("/")[:depth]) for path in tree for depth in range(1, path.count("/") + 1)}
    for path in sorted({*tree, *folders}):
        if path in folders:
            yield {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
            continue
        data = tree[path]
        entry: dict[str, Any] = {"type": "file", "oid": git_name(data), "size": len(data), "path": path}
        if _is_lfs(path):
            sha256 = hashlib.sha256(data).hexdigest()
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
            entry |= {"oid": git_name(pointer), "lfs": {"oid": sha256, "size": len(data), "pointerSize": len(pointer)}}
        yield entry


def _json(body: Any) -> Reply:
    return Reply(200, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(body).encode())


def _error(status: int, code: str | None, message: str) -> Reply:
    named = {"X-Error-Code": code} if code else {}
    return Reply(status, {**named, "X-Error-Message": message}, json.dumps({"error": message}).encode())
