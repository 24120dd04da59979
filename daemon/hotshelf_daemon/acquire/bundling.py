"""Bind: a held archive becomes the bundle of its environment and graph, signed. The first one stays.

A second builder of the same archive is remembered as one; a builder of another is refused, unless it is trusted and the
first was not. What is bound but cannot be served makes way for anybody's.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable

from hotshelf_daemon.acquire.binding import missing
from hotshelf_daemon.acquire.bundles import Bundles, ref_of
from hotshelf_daemon.acquire.handing import HandIns
from hotshelf_daemon.acquire.names import Names
from hotshelf_daemon.index import blobs, bundles, handed_in, journal
from hotshelf_daemon.index.bundles import BundleRow
from hotshelf_daemon.materialize import BlobsGone, materialize
from hotshelf_daemon.shelf import Shelf
from hotshelf_shared.bundle import BundleName, BundleRequest
from hotshelf_shared.errors import Conflict, InvalidRequest, TooLarge, UnsafeContent
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Wish

log = logging.getLogger(__name__)


class BundleBinder:
    """`on_bound` hears of every new binding."""

    def __init__(self, shelf: Shelf, names: Names, rules: Bundles, hand_ins: HandIns, *, on_bound: Callable[[], None]) -> None:
        self._shelf = shelf
        self._names = names
        self._rules = rules
        self._hand_ins = hand_ins
        self._on_bound = on_bound

    async def bind(self, name: BundleName, request: BundleRequest, *, uid: int) -> bool:
        """Whether it is new: False when the name stood for this archive already.

        Raises TooLarge, MissingBlobs, InvalidRequest (another size), UnsafeContent, Conflict.
        """
        if request.size > (most := self._shelf.settings.bundles.max_size):
            raise TooLarge(
                f"the archive is {request.size:,} bytes; a bundle has {most:,} at the most",
                hint="Raise bundles.max_size, or keep less in the compile cache.",
            )
        self._check_held(request)
        sound = await self._rules.sound(name)
        new = not await self._is_bound(sound, request, uid)
        if new:
            await self._bind(name, request, uid, sound)
        self._hand_ins.bound([request.digest], uid=uid)
        return new

    def _check_held(self, request: BundleRequest) -> None:
        digest = request.digest
        size = self._shelf.index.read(lambda db: blobs.sizes(db, [digest])).get(digest)
        if size is None:
            raise missing([digest])
        if size != request.size:
            raise InvalidRequest(f"the archive is said to be {request.size:,} bytes; {digest} is {size:,}")
        if why := self._shelf.index.read(blobs.unsafe).get(digest):
            raise UnsafeContent(f"{digest} cannot be a bundle: {why}", hint="Hand in an archive of the compile cache.")

    async def _is_bound(self, sound: BundleRow | None, request: BundleRequest, uid: int) -> bool:
        """Whether nothing is left to do but to remember the builder: the name stands for this very archive."""
        if sound is None or sound.bundle.digest != request.digest:
            return False

        def remember(db: sqlite3.Connection) -> bool:
            row = bundles.find(db, sound.bundle.name)
            if row is None or not row.is_ready or row.bundle != sound.bundle:
                return False
            if self._shelf.trusts(uid) and not self._rules.is_trusted(row):
                return False  # from now on it is to be everybody's: bound anew, in the name of who can be trusted
            bundles.add_builder(db, row.bundle.name, uid)
            handed_in.let_go(db, [(request.digest, uid)])
            return True

        return await self._shelf.index.write(remember, durable=True)

    async def _bind(self, name: BundleName, request: BundleRequest, uid: int, sound: BundleRow | None) -> None:
        binding = self._rules.binding_of(name, request.digest, request.size, uid, sound)
        bundle = binding.bundle
        want = self._names.want(Wish(Source("bundle", "", str(name))))
        try:
            await materialize(self._shelf, bundle.tree, ref_of(want, bundle), binding=binding)
        except BlobsGone as gone:
            raise missing(gone.digests) from gone
        except Conflict as conflict:
            await self._tell("bundle_conflict", name, f"uid {uid}: {conflict.message}")
            raise
        if sound is not None and sound.bundle.digest != bundle.digest:
            await self._tell(
                "bundle_replaced", name, f"uid {uid} bound {bundle.digest}, uid {sound.bundle.uid} {sound.bundle.digest}"
            )
        log.info("bundle bound", extra={"bundle": str(name), "digest": bundle.digest, "uid": uid})
        self._on_bound()

    async def _tell(self, kind: str, name: BundleName, detail: str) -> None:
        await self._shelf.index.write(lambda db: journal.event(db, kind, f"bundle:{name}", detail))
