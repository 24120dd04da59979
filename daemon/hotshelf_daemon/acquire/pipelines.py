"""Whom a pipeline's key is answered, and with what.

Invariant: a key is answered with the tree that its row names and no other, to a uid that built this very tree and to
`trusted_uids`; to everybody when one of those built it, or the operator's prefix has it. To anybody else it is as if it were
not there: what a stranger built is not to be run.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from hotshelf_daemon.acquire.names import Want
from hotshelf_daemon.acquire.published import Published
from hotshelf_daemon.index import pipelines, snapshots
from hotshelf_daemon.index.pipelines import PipelineRow
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.materialize import PipelineBinding
from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin import Changed, Directory
from hotshelf_daemon.plan import Resolution, WantedFile
from hotshelf_daemon.policy import Policy
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import trees
from hotshelf_shared.built import MAX_BUILT_BYTES, Built
from hotshelf_shared.digest import Revision
from hotshelf_shared.errors import IntegrityError, NotFound
from hotshelf_shared.source import Source

_KEY = re.compile(r"[0-9a-f]{64}\Z")


def published_pipelines(shelf: Shelf, directory: Directory) -> Published[Built]:
    def parse(data: bytes, key: str) -> Built:
        built = Built.parse(data, key)
        policy = Policy.of(shelf.settings, Source("pipeline", "", key))
        for path in built.tree:
            if why := policy.reason_by_name(path):
                raise IntegrityError(f"the document of the pipeline {key} names {path}: {why}")
        return replace(built, uid=os.geteuid())

    return Published(shelf, directory, "pipeline", parse, most_bytes=MAX_BUILT_BYTES)


class Pipelines:
    def __init__(self, shelf: Shelf, published: Published[Built]) -> None:
        self._shelf = shelf
        self._published = published

    async def show(self, key: str, *, uid: int) -> dict[str, Any]:
        """A pipeline that this uid may lease; one that is only published is `held` when it is leased. Raises NotFound."""
        row = self._shelf.index.read(lambda db: pipelines.find(db, key))
        if row is not None and self._may_have(row, uid):
            return {
                **self._shelf.index.read(lambda db: pipelines.shown(db, key)),
                "path": trees.path_of(row.revision),
                "held": True,
            }
        if (built := await self._find(key)) is not None:
            return _shown(built)
        raise _absent(key)

    async def admit(self, wants: Iterable[Want], *, uid: int) -> None:
        """Raises NotFound for a key that this uid is not answered."""
        for want in filter(is_pipeline, wants):
            row = self._shelf.index.read(lambda db: pipelines.find(db, want.source.path))  # noqa: B023 - run at once
            if row is not None and self._may_have(row, uid) and _is_meant(want, row.revision):
                continue
            built = await self._find(want.source.path)
            if built is None or not _is_meant(want, built.revision):
                raise _absent(want.source.path)

    def answers(self, db: sqlite3.Connection, want: Want, ref: RefRow, *, uid: int) -> bool:
        """Whether this ref is what the key stands for, for this uid."""
        row = pipelines.find(db, want.source.path)
        return row is not None and row.revision == ref.revision and _is_meant(want, ref.revision) and self._may_have(row, uid)

    def check(self, wants: Sequence[Want], refs: Sequence[RefRow], *, uid: int) -> None:
        """The last look before an answer. Raises Changed when a key has come to stand for something else meanwhile."""
        for want, ref in zip(wants, refs, strict=True):
            if is_pipeline(want) and not self._shelf.index.read(lambda db: self.answers(db, want, ref, uid=uid)):  # noqa: B023
                raise Changed(f"{want.source} was bound anew at this very moment")

    async def resolve(self, want: Want) -> Resolution:
        """What the key stands for: what was bound here, unless only its builder trusts it and a node published another."""
        row = self._shelf.index.read(lambda db: pipelines.find(db, want.source.path))
        held = row if row is not None and row.is_ready and _is_meant(want, row.revision) else None
        if held is None or not self.is_trusted(held):
            built = await self._find(want.source.path)
            if built is not None and _is_meant(want, built.revision):
                return self._published.resolution(built, f"pipeline:{built.key}", want.key)
        if held is None:
            raise _absent(want.source.path)
        return self._of_shelf(want, held)

    def binding(self, resolution: Resolution) -> PipelineBinding | None:
        """What has to be bound when this resolution's files are here."""
        built = resolution.built
        return PipelineBinding(built, published_to=self._published.prefix) if isinstance(built, Built) else None

    async def _find(self, key: str) -> Built | None:
        return await self._published.find(key) if _KEY.match(key) else None

    def is_trusted(self, row: PipelineRow) -> bool:
        return any(map(self._shelf.trusts, row.builders))

    def _may_have(self, row: PipelineRow, uid: int) -> bool:
        trusted = self._shelf.settings.trusted_uids
        return row.is_ready and (row.published or uid in row.builders or any(one in trusted for one in (uid, *row.builders)))

    def _of_shelf(self, want: Want, row: PipelineRow) -> Resolution:
        tree = self._shelf.index.read(lambda db: snapshots.manifest(db, row.revision))
        files = tuple(WantedFile(path, OriginObject(path, entry.size, ""), entry.digest) for path, entry in tree.items())
        return Resolution(str(want.source), "shelf", files, (), "tree", published=True, wish=want.key)


def is_pipeline(want: Want) -> bool:
    return want.source.kind == "pipeline"


def _is_meant(want: Want, revision: Revision) -> bool:
    return want.source.pinned in (None, revision)


def _absent(key: str) -> NotFound:
    """The same words whether there is none or it is another's."""
    source = Source("pipeline", "", key)
    return NotFound(f"there is no {source}", hint="It appears when a worker has built and bound it (load_pipeline does).")


def _shown(built: Built) -> dict[str, Any]:
    return {
        "key": built.key,
        "revision": built.revision,
        "recipe": built.recipe.to_json(),
        "uid": built.uid,
        "created_at": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(built.created_at)),
        "build": dict(built.build),
        "files": len(built.tree),
        "bytes": built.tree.size,
        "path": None,
        "held": False,
    }
