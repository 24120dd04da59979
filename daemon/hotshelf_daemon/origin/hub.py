"""What a repository on the Hugging Face Hub holds, asked by way of huggingface_hub: the only module that imports it.

Its requests go through a `Web`, as the bytes do: the same proxies, certificates, time-outs and guard, and the token is added
there, so that the library never sees it. Nor does it read what lies in the home of this user, or retry: that is our own part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import httpx2
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub import errors as hub
from huggingface_hub.hf_api import RepoFile

from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin.web import Web
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import AccessDenied, IntegrityError, InvalidRequest, NotFound, TooLarge
from hotshelf_shared.manifest import MAX_FILES
from hotshelf_shared.source import is_commit

MAX_ANSWER_BYTES = 16 << 20
#: More than any disk has; as many as a repository may have of these are still a number that SQLite holds.
MAX_FILE_BYTES = 1 << 47
#: Pages of a listing; the hub's have a thousand entries.
MOST_REQUESTS = 1_000
#: What comes of an answer that is not what the library, or a digest, must be.
_NO_ANSWER = (
    ValueError, TypeError, KeyError, AttributeError, RecursionError, InvalidRequest, httpx2.HTTPError, httpx2.InvalidURL,
)  # fmt: skip
_NAMES = "Name a branch, a tag or a commit of it after the @."
_PASSED_ON = ("x-error-code", "x-error-message", "link")


@dataclass(slots=True)
class _Call:
    """One question, which the library may need several requests for."""

    web: Web
    left: int = MOST_REQUESTS


_call: ContextVar[_Call] = ContextVar("call")


class _Transport(httpx2.BaseTransport):
    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        call = _call.get()
        call.left -= 1
        if call.left < 0:
            raise IntegrityError(f"{call.web.label} lists in circles")
        answer = call.web.answer(str(request.url), MAX_ANSWER_BYTES)
        headers = {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
        body = _completed(answer.body) if "/tree/" in request.url.path and answer.status == 200 else answer.body
        return httpx2.Response(answer.status, headers=headers, content=body, request=request)


def _completed(body: bytes) -> bytes:
    """A page of a tree as the library wants it: some that speak the hub's language leave out what nobody needs."""
    page = json.loads(body)
    for entry in page if isinstance(page, list) else ():
        if isinstance(entry, dict) and isinstance(lfs := entry.get("lfs"), dict):
            entry["lfs"] = {"pointerSize": 0, "size": entry.get("size"), "oid": lfs.get("sha256"), **lfs}
        if isinstance(entry, dict) and entry.get("type") == "file":
            entry.setdefault("oid", "")
    return json.dumps(page).encode()


# The library has one client for all of a process, and no other way to give it one.
set_client_factory(lambda: httpx2.Client(transport=_Transport()))


class Hub:
    """Blocks. Raises AccessDenied, NotFound (no such repository), TooLarge, OriginUnavailable, IntegrityError."""

    def __init__(self, endpoint: str, web: Web, advice: Callable[[str], str]) -> None:
        """`advice` is what to do when a repository is not shown."""
        self._web, self._advice = web, advice
        self._api = HfApi(endpoint=endpoint, token=False)

    def commit(self, repo: str, ref: str) -> str | None:
        """What a branch, tag, ref or commit is right now, as far as its files may be read; None where there is none."""
        with self._asking(repo):
            try:
                info = self._api.model_info(repo, revision=ref, expand=["sha", "gated"])
            except hub.RevisionNotFoundError:
                return None
            if not isinstance(info.sha, str) or not is_commit(info.sha):
                raise IntegrityError(f"{self._web.label} does not say which commit {ref} of {repo} is")
            if info.gated:
                self._may_read(repo)
            return info.sha

    def _may_read(self, repo: str) -> None:
        """What a gated repository holds is told to everybody: room would be made for what may not be read."""
        try:
            self._api.auth_check(repo)
        except hub.GatedRepoError:
            raise
        except hub.HfHubHTTPError as error:
            if error.response.status_code != 404:  # not all that speaks the hub's language knows this question
                raise

    def tree(self, repo: str, commit: str) -> tuple[OriginObject, ...]:
        """Every file of a commit by its path, with its digest where the hub knows it: of what lies in LFS or Xet."""
        with self._asking(repo):
            found: list[OriginObject] = []
            for entry in self._api.list_repo_tree(repo, recursive=True, revision=commit):
                if isinstance(entry, RepoFile):
                    found.append(_object(entry))
                if len(found) > MAX_FILES:
                    hint = "Publish the part that you need with `hotshelf push`."
                    raise TooLarge(f"{repo} has more than {MAX_FILES:,} files", hint=hint)
            return tuple(found)

    @contextmanager
    def _asking(self, repo: str) -> Iterator[None]:
        token = _call.set(_Call(self._web))
        try:
            yield
        except hub.RevisionNotFoundError as error:
            raise NotFound(f"{repo} has no such commit at {self._web.label}", hint=_NAMES, missing="revision") from error
        except hub.GatedRepoError as error:
            message = f"{repo} is gated at {self._web.label}, and may not be read"
            raise AccessDenied(message, hint=self._advice(repo)) from error
        except hub.HfHubHTTPError as error:
            raise self._refused(repo, error) from error
        except hub.HFValidationError as error:
            raise InvalidRequest(f"{repo} is no name of a repository") from error
        except _NO_ANSWER as error:
            raise IntegrityError(f"{self._web.label} answers for {repo} as no hub does", hint="Check hf.endpoint.") from error
        finally:
            _call.reset(token)

    def _refused(self, repo: str, error: hub.HfHubHTTPError) -> AccessDenied | NotFound | IntegrityError:
        status, label = error.response.status_code, self._web.label
        if error.response.headers.get("x-error-message", "").startswith("Invalid credentials"):
            return AccessDenied(
                f"{label} does not accept the token", hint="Set HF_TOKEN (or hf.token_file) to one that is valid."
            )
        if isinstance(error, hub.RepositoryNotFoundError) or status in (401, 404):
            return NotFound(f"there is no repository {repo} at {label}, or it is private", hint=self._advice(repo))
        if status == 403:
            return AccessDenied(f"{label} says 403: {repo} may not be read", hint=self._advice(repo))
        return IntegrityError(f"{label} says {status} for {repo}", hint="Check hf.endpoint: something else may answer there.")


def _object(file: RepoFile) -> OriginObject:
    """Its version is the sha256, or else the name that Xet or git has for it."""
    has_size = type(file.size) is int and 0 <= file.size <= MAX_FILE_BYTES
    if not has_size or not isinstance(file.path, str) or not isinstance(file.blob_id, str):
        raise ValueError("it is no file")
    if file.lfs is None:
        return OriginObject(file.path, file.size, str(file.xet_hash or file.blob_id))
    return OriginObject(file.path, file.size, file.lfs.sha256, digest=Digest.parse(f"sha256:{file.lfs.sha256}"))
