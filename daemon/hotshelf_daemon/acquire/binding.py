"""Bind: a tree over blobs that are held becomes the pipeline of its recipe's key. The first tree wins.

A second builder of the same tree is remembered as one; a builder of another tree is refused, unless it is trusted and the
first was not.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hotshelf_daemon.acquire.contents import check_contents
from hotshelf_daemon.acquire.handing import HandIns
from hotshelf_daemon.acquire.leasing import Peer
from hotshelf_daemon.acquire.names import Names, Want
from hotshelf_daemon.acquire.pipelines import Pipelines
from hotshelf_daemon.index import blobs, handed_in, journal, pipelines
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.materialize import BlobsGone, PipelineBinding, materialize
from hotshelf_daemon.shelf import Shelf
from hotshelf_shared.built import BindRequest, Built
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import Conflict, InvalidRequest, MissingBlobs, UnsafeContent
from hotshelf_shared.manifest import Manifest
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Wish

log = logging.getLogger(__name__)


class Binder:
    """`on_bound` hears of every new binding; `version` is recorded in it."""

    def __init__(
        self, shelf: Shelf, names: Names, rules: Pipelines, hand_ins: HandIns, *, version: str, on_bound: Callable[[], None]
    ) -> None:
        self._shelf = shelf
        self._names = names
        self._rules = rules
        self._hand_ins = hand_ins
        self._version = version
        self._on_bound = on_bound

    async def bind(self, key: str, request: BindRequest, peer: Peer) -> bool:
        """Whether it is new: False when the key stood for this tree already.

        Raises InvalidRequest (another key, sizes that are not so), MissingBlobs, UnsafeContent, Conflict.
        """
        if request.recipe.key != key:
            raise InvalidRequest(
                f"the recipe has the key {request.recipe.key}, not {key[:80]}", hint="Take the key of the recipe that is sent."
            )
        want = self._names.want(Wish(Source("pipeline", "", key)))
        self._check_names(request.tree, want)
        self._check_held(request.tree)
        await self._check_contents(request.tree, want)
        built = Built(request.recipe, request.tree, peer.uid, time.time(), self._version, request.build)
        new = not await self._is_bound(built)
        if new:
            await self._bind(want, built)
        self._hand_ins.bound(built.tree.blobs(), uid=peer.uid)
        return new

    def _check_names(self, tree: Manifest, want: Want) -> None:
        for path in tree:
            if why := want.policy.reason_by_name(path):
                raise UnsafeContent(f"{path} cannot be part of a pipeline: {why}", path=path)

    def _check_held(self, tree: Manifest) -> None:
        wanted = tree.blobs()
        held = self._shelf.index.read(lambda db: blobs.sizes(db, wanted))
        if lacking := [digest for digest in wanted if digest not in held]:
            raise missing(lacking)
        unsafe = self._shelf.index.read(blobs.unsafe)
        for path, entry in tree.items():
            if held[entry.digest] != entry.size:
                raise InvalidRequest(
                    f"the manifest says that {path} is {entry.size:,} bytes; {entry.digest} is {held[entry.digest]:,}"
                )
            if entry.digest in unsafe:
                raise UnsafeContent(f"{path} cannot be part of a pipeline: {unsafe[entry.digest]}", path=path)

    async def _check_contents(self, tree: Manifest, want: Want) -> None:
        try:
            await asyncio.to_thread(check_contents, self._shelf.layout, tree, want.policy)
        except FileNotFoundError as gone:  # evicted since it was looked up
            raise missing([Digest.from_hex(str(gone.filename))]) from gone

    async def _is_bound(self, built: Built) -> bool:
        """Whether nothing is left to do but to remember the builder: the key stands for this very tree."""

        def remember(db: sqlite3.Connection) -> bool:
            row = pipelines.find(db, built.key)
            if row is None or not row.is_ready or row.revision != built.revision:
                return False
            if self._shelf.trusts(built.uid) and not self._rules.is_trusted(row):
                return False  # from now on it is to be everybody's: bound anew, in the name of who can be trusted
            if built.uid not in row.builders:
                pipelines.add_builder(db, built.key, built.uid)
            handed_in.let_go(db, ((digest, built.uid) for digest in built.tree.blobs()))
            return True

        return await self._shelf.index.write(remember, durable=True)

    async def _bind(self, want: Want, built: Built) -> None:
        builder, before = built.uid, self._shelf.index.read(lambda db: pipelines.find(db, built.key))
        if before is not None and before.revision == built.revision and not self._shelf.trusts(builder):
            built = replace(built, uid=before.uid)  # made whole again, and still whose it was
        ref = RefRow(
            wish=want.key,
            source=str(want.source),
            allow=None,
            ignore=(),
            revision=built.revision,
            listing="",
            skipped=(),
            kind="tree",
            flipped_at=time.time(),
        )
        try:
            await materialize(self._shelf, built.tree, ref, binding=PipelineBinding(built, builder))
        except BlobsGone as gone:
            raise missing(gone.digests) from gone
        except Conflict as conflict:
            await self._tell("pipeline_conflict", want, f"uid {builder}: {conflict.message}")
            raise
        if before is not None and before.is_ready and before.revision != built.revision:
            await self._tell(
                "pipeline_replaced", want, f"uid {built.uid} bound {built.revision}, uid {before.uid} {before.revision}"
            )
        log.info("pipeline bound", extra={"pipeline": built.key, "revision": built.revision, "uid": built.uid})
        self._on_bound()

    async def _tell(self, kind: str, want: Want, detail: str) -> None:
        await self._shelf.index.write(lambda db: journal.event(db, kind, str(want.source), detail))


def missing(digests: Any) -> MissingBlobs:
    listed = sorted(digests)
    return MissingBlobs(f"{len(listed)} blobs are not held, {listed[0]} among them", missing=listed)
