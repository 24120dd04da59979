"""Repositories as clients of the Hugging Face Hub know them, and single files of them onto the shelf: what the mirror serves.

A file comes with whatever else is small at that commit, so that a repository is a few snapshots and not one for each file.
With the hub away, what is held of a commit is all there is of it.
"""

from __future__ import annotations

import asyncio
import glob
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hotshelf_daemon.acquire.bringing import bring
from hotshelf_daemon.acquire.gauge import Gauge
from hotshelf_daemon.acquire.names import Names, Want
from hotshelf_daemon.acquire.prepare import Preparer
from hotshelf_daemon.flights import Flights
from hotshelf_daemon.index import blobs, snapshots
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.origin import Changed
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.views import ORGANISATION
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import InvalidRequest, NotFound, OriginUnavailable, UnsafeContent
from hotshelf_shared.patterns import Patterns
from hotshelf_shared.source import Source, is_commit
from hotshelf_shared.wire import Wish

#: Files up to this size come together, unless there are more of them than so many.
SMALL_BYTES = 256 << 10
MOST_TOGETHER = 200
#: Repositories that are remembered.
KNOWN = 256


@dataclass(frozen=True, slots=True)
class HubFile:
    """`version` is what the hub calls its content: the sha256 of weights, git's name of all else; ours when it is away."""

    size: int
    version: str
    digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class Repository:
    """ORG/NAME at a commit. `skipped` says why a file of it is not served."""

    organisation: str
    name: str
    commit: str
    files: Mapping[str, HubFile]
    skipped: Mapping[str, str] = field(default_factory=dict)


class Repositories:
    def __init__(self, shelf: Shelf, names: Names, preparer: Preparer) -> None:
        self._shelf, self._names, self._preparer = shelf, names, preparer
        self._known = OrderedDict[tuple[str, str, str], tuple[float, Repository]]()
        self._bringing: Flights[None] = Flights()

    async def at(self, organisation: str, name: str, revision: str) -> Repository:
        """Raises NotFound, and what the origin does unless some of it is held."""
        key = (organisation, name, revision)
        if (known := self._known.get(key)) is not None:
            at, repository = known
            if is_commit(revision) or time.monotonic() - at < self._shelf.settings.revalidate_s:
                return repository
        found = await (self._of_ours(name, revision) if organisation == ORGANISATION else self._of_hub(*key))
        self._known[key] = (time.monotonic(), found)
        self._known.move_to_end(key)
        while len(self._known) > KNOWN:
            self._known.popitem(last=False)
        return found

    async def blob(self, repository: Repository, path: str) -> Digest:
        """The content of a file, held. Raises NotFound, UnsafeContent, and what an acquire does."""
        if (file := repository.files.get(path)) is None:
            if path in repository.skipped:
                raise UnsafeContent(f"{path} is not served: {repository.skipped[path]}", hint="Convert it to safetensors.")
            raise NotFound(f"{repository.organisation}/{repository.name} has no {path} at {repository.commit}")
        if (held := self._held(repository, path, file)) is not None:
            return held
        for want in self._wants_of(repository, path):
            await self._bringing.join(want.key, lambda: self._bring(want))  # noqa: B023
            if (held := self._held(repository, path, file)) is not None:
                return held
        raise UnsafeContent(f"{path} is not served: its bytes would execute", hint="Convert it to safetensors.")

    # ---- what there is

    async def _of_hub(self, organisation: str, name: str, revision: str) -> Repository:
        want = self._want(_source(organisation, name, revision), Patterns())
        try:
            resolution = await self._preparer.resolve(want)
        except OriginUnavailable:
            if (held := await self._shelf.index.look(lambda db: _held_of(db, organisation, name, revision))) is None:
                raise
            return held
        files = {file.path: HubFile(file.object.size, file.object.version, file.digest) for file in resolution.files}
        skipped = {skip.path: skip.reason for skip in resolution.skipped}
        return Repository(organisation, name, str(resolution.commit), files, skipped)

    async def _of_ours(self, name: str, revision: str) -> Repository:
        """A configured name, all of it: its commit is what its bytes are, which is known when they are here."""
        want = self._names.want(Wish(Source.parse(name)))
        ref = self._shelf.index.read(lambda db: snapshots.ready_ref(db, want.key))
        if ref is None or not self._preparer.accepts(want, ref):
            await self._bringing.join(want.key, lambda: self._bring(want))
            ref = self._shelf.index.read(lambda db: snapshots.ready_ref(db, want.key))
        if ref is None or revision not in ("main", ref.revision.hex[:40]):
            raise NotFound(f"{ORGANISATION}/{name} is not held at {revision}", hint="Ask for main.")
        found = ref
        tree = await self._shelf.index.look(lambda db: snapshots.manifest(db, found.revision))
        files = {path: HubFile(entry.size, entry.digest.hex, entry.digest) for path, entry in tree.items()}
        return Repository(ORGANISATION, name, found.revision.hex[:40], files)

    # ---- what is held of it

    def _held(self, repository: Repository, path: str, file: HubFile) -> Digest | None:
        """By its digest where the hub tells it, else by what was learnt of that path at that commit."""

        def look(db: sqlite3.Connection) -> Digest | None:
            digest = file.digest or _learnt(db, repository, path)
            return digest if digest is not None and blobs.sizes(db, [digest]) and not blobs.unsafe(db).get(digest) else None

        return self._shelf.index.read(look)

    def _wants_of(self, repository: Repository, path: str) -> Iterator[Want]:
        """By the branch through which its commit was found, so that it is known again with the hub away; else by the commit."""
        small = [other for other, file in repository.files.items() if file.size <= SMALL_BYTES]
        together = sorted(small) if path in small and len(small) <= MOST_TOGETHER else [path]
        patterns = Patterns(allow=tuple(map(glob.escape, together)))
        whose = (repository.organisation, repository.name)
        branches = [key[2] for key, (_, one) in self._known.items() if key[:2] == whose and one.commit == repository.commit]
        for revision in (*(branch for branch in branches if not is_commit(branch)), repository.commit):
            yield self._want(_source(*whose, revision), patterns)

    def _want(self, source: Source, patterns: Patterns) -> Want:
        return self._names.want(Wish(source, patterns))

    async def _bring(self, want: Want) -> None:
        for last in (False, True):
            try:
                resolution = await self._preparer.resolve(want)
                await bring(self._shelf, self._preparer, [(want, resolution)], Gauge(str(want.source)), prefetch=False)
            except Changed:
                if last:
                    raise
                await asyncio.sleep(0)
            else:
                return


def _source(organisation: str, name: str, revision: str) -> Source:
    try:
        return Source.parse(f"hf://{organisation}/{name}" + ("" if revision == "main" else f"@{revision}"))
    except InvalidRequest as error:
        raise NotFound(f"there is no repository {organisation}/{name} at {revision}: {error.message}") from error


def _held_of(db: sqlite3.Connection, organisation: str, name: str, revision: str) -> Repository | None:
    """All that is held of the commit that `revision` was when it was last asked about."""
    commit: str | None = revision
    if not is_commit(revision):
        branch = str(_source(organisation, name, revision))
        commit = next((ref.commit for ref in snapshots.refs(db, branch)), None)
    files = {
        path: HubFile(entry.size, entry.digest.hex, entry.digest)
        for ref in _ready_at(db, organisation, name, commit or "")
        for path, entry in snapshots.manifest(db, ref.revision).items()
    }
    return Repository(organisation, name, commit, files) if commit is not None and files else None


def _learnt(db: sqlite3.Connection, repository: Repository, path: str) -> Digest | None:
    for ref in _ready_at(db, repository.organisation, repository.name, repository.commit):
        if (entry := snapshots.manifest(db, ref.revision).get(path)) is not None:
            return entry.digest
    return None


def _ready_at(db: sqlite3.Connection, organisation: str, name: str, commit: str) -> list[RefRow]:
    """Whatever selections of that commit are held."""
    repository = str(_source(organisation, name, "main"))
    refs = (ref for ref in snapshots.at_commit(db, commit) if ref.source.partition("@")[0] == repository)
    return [ref for ref in refs if snapshots.is_ready(db, ref.revision)]
