"""Whom a bundle is answered, and whether it is what was bound: its signature, its folder and its bytes, every time.

A compile cache is code that workers run. Invariant: no path of one is given out unless its row and its document are signed
with this daemon's key and agree, and its bytes are right; and only to a uid that built this very archive and to
`trusted_uids`, or to everybody when one of those built it. To anybody else, and in any other case, there is none.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from hotshelf_daemon.acquire.names import Want
from hotshelf_daemon.flights import Flights
from hotshelf_daemon.index import bundles, journal
from hotshelf_daemon.index.bundles import BundleRow
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import blobs as files
from hotshelf_daemon.store import bundles as folders
from hotshelf_shared.bundle import Bundle, BundleName
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import NotFound

log = logging.getLogger(__name__)
#: Archives whose bytes were read and found right, and refusals that were told: remembered for as many as this.
REMEMBERED = 4_096


class Bundles:
    """`condemn` puts wrong blobs out of the way."""

    def __init__(self, shelf: Shelf, condemn: Callable[[list[Digest], str], Awaitable[object]]) -> None:
        self._shelf = shelf
        self._condemn = condemn
        self._examining: Flights[str | None] = Flights()
        self._proven: dict[Digest, files.Mark] = {}
        self._told: set[tuple[Bundle, str]] = set()

    async def show(self, name: BundleName, *, uid: int) -> dict[str, Any]:
        """A bundle that this uid may lease. Raises NotFound."""
        bundle = (await self._answer(name, uid)).bundle
        return {**_shown(bundle), "path": folders.path_of(name, bundle.revision)}

    def listed(self, environment_key: str | None, *, uid: int) -> list[dict[str, Any]]:
        """Those of an environment, or of all, that this uid may ask for, by name. Folder and bytes are looked at then."""
        held = self._shelf.index.read(lambda db: bundles.rows(db, environment_key))
        mine = [row.bundle for row in held if self._may_have(row, uid)]
        return [_shown(bundle) for bundle in mine if bundle.is_signed_with(self._shelf.bundle_key)]

    async def admit(self, wants: Iterable[Want], *, uid: int) -> None:
        """Raises NotFound for a bundle that this uid is not answered."""
        for want in filter(is_bundle, wants):
            row = await self._answer(name_of(want), uid)
            if want.source.pinned not in (None, row.bundle.revision):
                raise absent(name_of(want))

    def ref(self, db: sqlite3.Connection, want: Want, *, uid: int) -> RefRow | None:
        """What an admitted want stands for at this moment."""
        row = bundles.find(db, name_of(want))
        if row is None or not self._may_have(row, uid) or want.source.pinned not in (None, row.bundle.revision):
            return None
        return ref_of(want, row.bundle)

    async def sound(self, name: BundleName) -> BundleRow | None:
        """What the name is bound to, whoever asks; None, and an event, when that is not what was bound."""
        row = self._shelf.index.read(lambda db: bundles.find(db, name))
        return row if row is not None and row.is_ready and await self._is_sound(row) else None

    def is_trusted(self, row: BundleRow) -> bool:
        return any(map(self._shelf.trusts, row.builders))

    async def _answer(self, name: BundleName, uid: int) -> BundleRow:
        """Nothing is looked into for a stranger."""
        row = self._shelf.index.read(lambda db: bundles.find(db, name))
        if row is None or not self._may_have(row, uid) or not await self._is_sound(row):
            raise absent(name)
        return row

    def _may_have(self, row: BundleRow, uid: int) -> bool:
        trusted = self._shelf.settings.trusted_uids
        return row.is_ready and (uid in row.builders or any(one in trusted for one in (uid, *row.builders)))

    async def _is_sound(self, row: BundleRow) -> bool:
        bundle = row.bundle
        why = await self._examining.join(bundle, lambda: self._examine(bundle))
        if why is not None and (bundle, why) not in self._told:
            _bound(self._told)
            self._told.add((bundle, why))
            log.warning("a bundle is not served", extra={"bundle": str(bundle.name), "why": why})
            await self._shelf.index.write(lambda db: journal.event(db, "bundle_refused", f"bundle:{bundle.name}", why))
        return why is None

    async def _examine(self, bundle: Bundle) -> str | None:
        """Why it must not be served; None when all of it is right."""
        if not bundle.is_signed_with(self._shelf.bundle_key):
            return "its row is not signed with this daemon's key"
        if await asyncio.to_thread(folders.read, self._shelf.layout, bundle.name, bundle.revision.hex) != bundle:
            return "its folder is not what was bound"
        if not await asyncio.to_thread(self._is_archive_right, bundle):
            await self._condemn([bundle.digest], "wrong bytes")
            return "the bytes of its archive are wrong"
        return None

    def _is_archive_right(self, bundle: Bundle) -> bool:
        """Read and hashed once in this daemon's life, and again whenever its file is not the same, untouched one."""
        mark = files.mark(self._shelf.layout, bundle.digest)
        if mark is None or mark.size != bundle.size:
            return False
        if self._proven.get(bundle.digest) == mark:
            return True
        if not files.is_right(self._shelf.layout, bundle.digest):
            return False
        _bound(self._proven)
        self._proven[bundle.digest] = mark
        return True


def is_bundle(want: Want) -> bool:
    return want.source.kind == "bundle"


def name_of(want: Want) -> BundleName:
    return BundleName.parse(want.source.path)


def _shown(bundle: Bundle) -> dict[str, Any]:
    return {
        "environment_key": bundle.name.environment_key,
        "graph_key": bundle.name.graph_key,
        "digest": bundle.digest,
        "size": bundle.size,
        "uid": bundle.uid,
        "created_at": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(bundle.issued)),
        "revision": bundle.revision,
    }


def ref_of(want: Want, bundle: Bundle) -> RefRow:
    return RefRow(
        wish=want.key,
        source=str(want.source),
        allow=None,
        ignore=(),
        revision=bundle.revision,
        listing="",
        skipped=(),
        kind="bundle",
        flipped_at=time.time(),
    )


def absent(name: BundleName) -> NotFound:
    """The same words whether there is none, it is another's, or it is not what was bound."""
    return NotFound(f"there is no bundle:{name}", hint="It appears when a worker has compiled and handed it in.")


def _bound(remembered: set[Any] | dict[Any, Any]) -> None:
    if len(remembered) >= REMEMBERED:
        remembered.clear()
