"""Repositories as clients of the Hugging Face Hub know them, and single files of them onto the shelf: what the mirror serves.

A file comes with others that are small, so that a repository is a few snapshots and not one for each file. What a commit
holds is remembered: with the hub away it is told, and what is held of it is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from hotshelf_daemon.acquire.bringing import bring
from hotshelf_daemon.acquire.freshness import Freshness
from hotshelf_daemon.acquire.gauge import Gauge
from hotshelf_daemon.acquire.names import Names, Want
from hotshelf_daemon.acquire.prepare import Preparer
from hotshelf_daemon.flights import Flights
from hotshelf_daemon.index import Unwritable, commits, snapshots
from hotshelf_daemon.origin import Changed
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import blobs
from hotshelf_daemon.views import ORGANISATION
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import Busy, InsufficientSpace, InvalidRequest, NotFound, OriginUnavailable, UnsafeContent
from hotshelf_shared.patterns import Patterns
from hotshelf_shared.source import Source, is_commit
from hotshelf_shared.wire import Wish

#: Files up to this size come together, so many at a time.
SMALL_BYTES = 256 << 10
TOGETHER = 200
#: How often what was evicted before it could be opened is brought again.
ROUNDS = 3
#: Files of repositories that are remembered, of all together.
KNOWN_FILES = 200_000


@dataclass(frozen=True, slots=True)
class HubFile:
    """`version` is what the hub calls its content: the sha256 of weights, git's name of all else."""

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

    def to_json(self) -> dict[str, Any]:
        files = {path: [file.size, file.version, file.digest] for path, file in self.files.items()}
        return {"files": files, "skipped": dict(self.skipped)}

    @classmethod
    def parse(cls, organisation: str, name: str, commit: str, body: dict[str, Any]) -> Repository:
        files = {
            path: HubFile(size, version, Digest(digest) if digest else None)
            for path, (size, version, digest) in body["files"].items()
        }
        return cls(organisation, name, commit, files, body["skipped"])


class Repositories:
    def __init__(self, shelf: Shelf, names: Names, preparer: Preparer, freshness: Freshness) -> None:
        self._shelf, self._names, self._preparer, self._freshness = shelf, names, preparer, freshness
        self._known = OrderedDict[tuple[str, str, str], tuple[float, Repository]]()
        self._bringing: Flights[Mapping[str, str]] = Flights()

    async def at(self, organisation: str, name: str, revision: str) -> Repository:
        """Raises NotFound, and what the origin does unless it is remembered."""
        if organisation == ORGANISATION:
            return await self._of_ours(name, revision)
        key = (organisation, name, revision)
        if (known := self._known.get(key)) is not None:
            at, repository = known
            if is_commit(revision) or time.monotonic() - at < self._shelf.settings.revalidate_s:
                return repository
        want = self._names.want(Wish(_source(*key)))
        try:
            resolution = await self._preparer.resolve(want)
        except OriginUnavailable:
            found = await self._shelf.index.look(lambda db: commits.find(db, f"{organisation}/{name}", revision))
            if found is None:
                raise
            return Repository.parse(organisation, name, *found)  # not for long: the hub may be back by the next question
        files = {file.path: HubFile(file.object.size, file.object.version, file.digest) for file in resolution.files}
        skipped = {skip.path: skip.reason for skip in resolution.skipped}
        repository = Repository(organisation, name, str(resolution.commit), files, skipped)
        await self._remember(key, repository)
        return repository

    async def open(self, repository: Repository, path: str) -> IO[bytes]:
        """A file of it, for reading: nobody holds a lease, but what is open stays. Raises UnsafeContent, and what an acquire
        does; Busy when it is evicted as soon as it is here."""
        for _ in range(ROUNDS):
            if (digest := await self._blob(repository, path)) is not None:
                with contextlib.suppress(FileNotFoundError):
                    return await asyncio.to_thread(self._open, digest)
        hint = "Send it again in a moment; if it stays so, raise `budget` or see `hotshelf verify`."
        raise Busy(f"{path} went away before it could be sent: others need its room", hint=hint)

    def _open(self, digest: Digest) -> IO[bytes]:
        return os.fdopen(blobs.open_blob(self._shelf.layout, digest), "rb")

    async def _blob(self, repository: Repository, path: str) -> Digest | None:
        """Its content, held a moment ago; None when it was evicted since."""
        if (held := await self._held(repository, path)) is not None:
            return held
        for want in self._wants_of(repository, path):
            try:
                left_out = await self._bringing.join(want.key, lambda: self._bring(want))  # noqa: B023
            except UnsafeContent:
                if want.patterns.allow == (glob.escape(path),):
                    raise  # else something else was to come with it
                continue
            if path in left_out:
                raise UnsafeContent(f"{path} is not served: {left_out[path]}", hint="Convert it to safetensors.")
            if (held := await self._held(repository, path)) is not None:
                return held
        return None

    # ---- what there is

    async def _of_ours(self, name: str, revision: str) -> Repository:
        """A configured name, all of it: its commit is what its bytes are, which is known when they are here."""
        want = self._names.want(Wish(Source.parse(name)))
        ref = self._shelf.index.read(lambda db: snapshots.ready_ref(db, want.key))
        if ref is None or not self._preparer.accepts(want, ref):
            await self._bringing.join(want.key, lambda: self._bring(want))
            ref = self._shelf.index.read(lambda db: snapshots.ready_ref(db, want.key))
        self._freshness.hit(want)
        if ref is None or revision not in ("main", ref.revision.hex[:40]):
            raise _no_revision(ORGANISATION, name, revision)
        found = ref
        tree = await self._shelf.index.look(lambda db: snapshots.manifest(db, found.revision))
        files = {path: HubFile(entry.size, entry.digest.hex, entry.digest) for path, entry in tree.items()}
        return Repository(ORGANISATION, name, found.revision.hex[:40], files)

    async def _remember(self, key: tuple[str, str, str], repository: Repository) -> None:
        body, revisions = repository.to_json(), {key[2], repository.commit}

        def note(db: Any) -> None:
            for revision in revisions:
                commits.put(db, f"{key[0]}/{key[1]}", revision, repository.commit, body)

        with contextlib.suppress(Unwritable, InsufficientSpace):  # then it is known for as long as this process lives
            await self._shelf.index.write(note)
        self._known[key] = (time.monotonic(), repository)
        self._known.move_to_end(key)
        while len(self._known) > 1 and sum(len(one.files) for _, one in self._known.values()) > KNOWN_FILES:
            self._known.popitem(last=False)

    # ---- what is held of it

    async def _held(self, repository: Repository, path: str) -> Digest | None:
        """As a snapshot has it, which policy has looked at; and somebody uses that now."""
        if repository.organisation == ORGANISATION:
            return repository.files[path].digest
        source = str(_source(repository.organisation, repository.name, "main"))
        found = self._shelf.index.read(lambda db: commits.held(db, source, repository.commit, path))
        if found is None:
            return None
        digest, revision = found
        with contextlib.suppress(Unwritable, InsufficientSpace):  # what is held is served also where nothing can be written
            await self._shelf.index.write_brief(lambda db: snapshots.freshen(db, revision))
        return digest

    def _wants_of(self, repository: Repository, path: str) -> Iterator[Want]:
        """With others that are small; then alone."""
        source = _source(repository.organisation, repository.name, repository.commit)
        small = sorted(other for other, file in repository.files.items() if file.size <= SMALL_BYTES)
        if path in small:
            begin = small.index(path) // TOGETHER * TOGETHER
            yield self._names.want(Wish(source, Patterns(allow=tuple(map(glob.escape, small[begin : begin + TOGETHER])))))
        yield self._names.want(Wish(source, Patterns(allow=(glob.escape(path),))))

    async def _bring(self, want: Want) -> Mapping[str, str]:
        """What was left out of it, and why."""
        for last in (False, True):
            try:
                resolution = await self._preparer.resolve(want)
                refs = await bring(self._shelf, self._preparer, [(want, resolution)], Gauge(str(want.source)), prefetch=False)
            except Changed:
                if last:
                    raise
                await asyncio.sleep(0)
            else:
                break
        return {skip.path: skip.reason for ref in refs for skip in ref.skipped}


def _source(organisation: str, name: str, revision: str) -> Source:
    try:
        repository = Source.parse(f"hf://{organisation}/{name}")
    except InvalidRequest as error:
        raise NotFound(f"there is no repository {organisation}/{name}: {error.message}", hint=error.hint) from error
    try:
        source = repository if revision == "main" else Source.parse(f"{repository}@{revision}")
    except InvalidRequest as error:
        raise _no_revision(organisation, name, revision) from error
    if (source.ref or "main", source.pinned) != (revision, None):
        raise _no_revision(organisation, name, revision)  # a digest of our own, which the hub knows nothing of
    return source


def _no_revision(organisation: str, name: str, revision: str) -> NotFound:
    return NotFound(f"{organisation}/{name} has no revision {revision!r} here", hint="Ask for main.", missing="revision")
