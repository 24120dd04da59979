"""The Hugging Face Hub, or what speaks its language, as one origin of all repositories.

`ORG/NAME/COMMIT/PATH` is a file, which never changes; `ORG/NAME/refs/REV` reads as the commit that REV is now. What a
repository holds is asked by way of huggingface_hub, bytes by ranged GETs of our own. The token goes to the endpoint's host
alone; from there redirects lead to wherever the hub keeps its bytes.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from botocore.exceptions import ClientError

from hotshelf_daemon import logs
from hotshelf_daemon.config import HubSettings, Settings, hub_token
from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin.port import Body, Corrupted
from hotshelf_daemon.origin.web import Terms, Web, place
from hotshelf_shared.errors import AccessDenied, BadConfiguration
from hotshelf_shared.source import Source

if TYPE_CHECKING:
    from hotshelf_daemon.origin.hub import Hub

_GIT_NAME = re.compile(r"[0-9a-f]{40}\Z")
#: What a redirect of the hub has signed is good for an hour.
LEAD_S = 600.0
#: Trees of commits that are remembered: what is checked for changes is asked for its commit alone.
TREES = 16
#: So many files that git calls otherwise, and none that it calls so, say that these are no names of git's.
MISNAMED = 2


def origin_of(settings: Settings) -> HfOrigin:
    endpoint = settings.hf.endpoint
    web = Web(urlsplit(endpoint).netloc, settings, lambda url: terms_for(url, settings.hf), lead_s=LEAD_S, has_pages=False)
    return HfOrigin(endpoint, web, has_token=settings.hf.token is not None)


def warm() -> None:
    """The library's half a second, before somebody waits for it. Where it is not installed, whoever asks is told so."""
    with suppress(ModuleNotFoundError):
        import hotshelf_daemon.origin.hub  # noqa: F401


def check_allowed(source: Source, hub: HubSettings) -> None:
    """Raises AccessDenied, the same whether or not there is such a repository."""
    repo = f"{source.authority}/{source.path}"
    if hub.repos and not any(fnmatchcase(repo, allowed) for allowed in hub.repos):
        hint = f"An operator can allow it: `hf: {{repos: [{repo}]}}`."
        raise AccessDenied(f"hf://{repo} is none of the configured repositories", hint=hint)


def terms_for(url: str, hub: HubSettings) -> Terms:
    """The endpoint's own, with the token; any host's over HTTPS, without. Raises AccessDenied for a way out."""
    there, here = place(url), place(hub.endpoint)
    if there == here:
        token = hub_token(hub)
        if token is None:
            return Terms(hub.ca_bundle)
        logs.keep_out({token.get_secret_value()})  # its file may hold another by now
        return Terms(hub.ca_bundle, {"Authorization": f"Bearer {token.get_secret_value()}"})
    if there[0] == "https" or (there[0] == "http" and there[:2] == here[:2]):
        return Terms(hub.ca_bundle if there[1] == here[1] else None)
    hint = "Only what is itself asked over plain HTTP may lead there, and only to the same host."
    raise AccessDenied(f"{here[1]} leads to {there[0]}://{there[1]}, which is not asked", hint=hint)


class HfOrigin:
    def __init__(self, endpoint: str, web: Web, *, has_token: bool) -> None:
        self.name = f"hf:{endpoint}"
        self.label = web.label
        self._endpoint, self._web, self._has_token = endpoint, web, has_token
        self._trees = OrderedDict[str, tuple[OriginObject, ...]]()
        self._misnamed, self._knows_git = set[str](), False
        self._lock = threading.Lock()

    @cached_property
    def _hub(self) -> Hub:
        """Half a second of imports, for those who need it. Raises BadConfiguration where it is not installed."""
        try:
            from hotshelf_daemon.origin.hub import Hub
        except ModuleNotFoundError as error:
            missing = "hf:// sources need huggingface_hub, which is not installed"
            raise BadConfiguration(missing, hint="pip install 'hotshelf[daemon]'") from error
        return Hub(self._endpoint, self._web, self._advice)

    def head(self, key: str) -> OriginObject | None:
        repo, commit, _ = _parts(key)
        return next((obj for obj in self._tree(repo, commit) if obj.key == key), None)

    def checksum(self, _obj: OriginObject) -> Checksum | None:
        return None

    def list(self, folder: str) -> Iterator[OriginObject]:
        repo, commit, _ = _parts(folder)
        return (obj for obj in self._tree(repo, commit) if obj.key.startswith(f"{folder}/"))

    def read(self, key: str, limit: int) -> bytes | None:
        repo, commit, path = _parts(key)
        if commit == "refs":
            found = self._hub.commit(repo, path)
            return None if found is None else found.encode()
        with self._let_in(repo):
            return self._web.read(self._url_of(key), limit)

    @contextmanager
    def open(self, obj: OriginObject, start: int, stop: int) -> Iterator[Body]:
        # What the bytes come from has its own ETags; a commit's file has no other version than this one.
        with ExitStack() as held:
            with self._let_in(_parts(obj.key)[0]):
                body = held.enter_context(self._web.open(self._url_of(obj.key), replace(obj, version=""), start, stop))
            whole = _GIT_NAME.match(obj.version) and (start, stop) == (0, obj.size)
            yield _GitBody(body, obj, self._believes) if whole else body

    def _believes(self, key: str, *, is_named_so: bool) -> bool:
        """Whether a file that git calls so, or otherwise, is what the hub has. Not all that speaks its language knows git's
        names: who has none right, and more than one wrong, is not asked for them."""
        with self._lock:
            if is_named_so:
                self._knows_git = True
            elif not self._knows_git and len(self._misnamed) < MISNAMED:
                self._misnamed.add(key)
            return is_named_so or (not self._knows_git and len(self._misnamed) >= MISNAMED)

    def _tree(self, repo: str, commit: str) -> tuple[OriginObject, ...]:
        at = f"{repo}/{commit}"
        with self._lock:
            if (known := self._trees.get(at)) is not None:
                self._trees.move_to_end(at)
                return known
        tree = tuple(replace(obj, key=f"{at}/{obj.key}") for obj in self._hub.tree(repo, commit))
        with self._lock:
            self._trees[at] = tree
            while len(self._trees) > TREES:
                self._trees.popitem(last=False)
        return tree

    def _url_of(self, key: str) -> str:
        repo, commit, path = _parts(key)
        return f"{self._endpoint}/{repo}/resolve/{commit}/{quote(path, safe='/~')}"

    @contextmanager
    def _let_in(self, repo: str) -> Iterator[None]:
        """Around every request for a repository's bytes: a refusal says what to do."""
        try:
            yield
        except AccessDenied as error:
            if not isinstance(refusal := error.__cause__, ClientError):
                raise
            status = refusal.response["ResponseMetadata"]["HTTPStatusCode"]
            raise AccessDenied(f"{self.label} says {status}: {repo} may not be read", hint=self._advice(repo)) from error

    def _advice(self, repo: str) -> str:
        page = f"{self._endpoint}/{repo}"
        if self._has_token:
            return f"Is it spelled right? Whose token HF_TOKEN is must be let in: ask at {page}."
        return (
            f"Is it spelled right? For a gated or private one ask at {page} to be let in, and set HF_TOKEN (or hf.token_file)."
        )


class _GitBody:
    """A whole file that git keeps, held against the name that git has for it (`git hash-object`)."""

    def __init__(self, body: Body, obj: OriginObject, believes: Callable[..., bool]) -> None:
        self._body, self._key, self._name, self._left = body, obj.key, obj.version, obj.size
        self._believes = believes
        self._seen = hashlib.sha1(f"blob {obj.size}\0".encode(), usedforsecurity=False)

    def readinto(self, buffer: memoryview, /) -> int:
        """Raises Corrupted when these were the last bytes and they are others."""
        taken = self._body.readinto(buffer)
        self._seen.update(buffer[:taken])
        self._left -= taken
        if self._left == 0 and not self._believes(self._key, is_named_so=self._seen.hexdigest() == self._name):
            raise Corrupted(f"the bytes are not git's {self._name}")
        return taken


def _parts(key: str) -> tuple[str, str, str]:
    """ORG/NAME, the commit or `refs`, and what comes after it."""
    organisation, name, commit, path = [*key.split("/", 3), "", "", ""][:4]
    return f"{organisation}/{name}", commit, path
