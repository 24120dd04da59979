"""Whom a bundle is answered, and whether it is what was bound: its signature, its folder and its bytes, every time.

A compile cache is code that workers run. Invariant: no path of one is given out unless its row and its document are signed
with this daemon's key and agree, and its bytes are right; and only to a uid that built this very archive and to
`trusted_uids`, or to everybody when one of those built it or the operator's prefix has it. To anybody else, and in any other
case, there is none. What another node published is believed when it is signed for this very name with the key that both have.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from hotshelf_daemon.acquire.condemning import condemn
from hotshelf_daemon.acquire.names import Want
from hotshelf_daemon.acquire.published import Published
from hotshelf_daemon.flights import Flights
from hotshelf_daemon.index import bundles, journal
from hotshelf_daemon.index.bundles import BundleRow
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.materialize import BundleBinding
from hotshelf_daemon.origin import Changed, Directory
from hotshelf_daemon.plan import Resolution
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import blobs as files
from hotshelf_daemon.store import bundles as folders
from hotshelf_shared.bundle import MAX_DOCUMENT_BYTES, Bundle, BundleName, publishing_key
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import IntegrityError, NotFound

log = logging.getLogger(__name__)
#: Archives whose bytes were read and found right, and refusals that were told: remembered for as many as this.
REMEMBERED = 4_096


def published_bundles(shelf: Shelf, directory: Directory) -> Published[Bundle]:
    key, most = publishing_key(shelf.bundle_key), shelf.settings.bundles.max_size

    def parse(data: bytes, name: str) -> Bundle:
        bundle = Bundle.parse(data)
        if not bundle.is_signed_with(key):
            raise IntegrityError(f"the published document of bundle:{name} is not signed with the key of bundles.key_file")
        if str(bundle.name) != name:
            raise IntegrityError(f"the published document of bundle:{name} is that of bundle:{bundle.name}")
        if bundle.size > most:
            raise IntegrityError(f"the published bundle:{name} is {bundle.size:,} bytes; bundles.max_size is {most:,}")
        return replace(bundle, uid=os.geteuid())

    return Published(shelf, directory, "bundle", parse, most_bytes=MAX_DOCUMENT_BYTES)


class Bundles:
    def __init__(self, shelf: Shelf, published: Published[Bundle]) -> None:
        self._shelf = shelf
        self._published = published
        self._examining: Flights[str | None] = Flights()
        self._proven: dict[Digest, files.Mark] = {}
        self._told: set[tuple[Bundle, str]] = set()
        #: What was found unsound, and is what its name is bound to until it is bound anew.
        self._unsound: dict[BundleName, Bundle] = {}

    async def show(self, name: BundleName, *, uid: int) -> dict[str, Any]:
        """A bundle that this uid may lease; one that is only published is `held` when it is leased. Raises NotFound."""
        if (row := await self._answer(name, uid)) is not None:
            return {**_shown(row.bundle), "path": folders.path_of(name, row.bundle.revision)}
        if (bundle := await self._published.find(str(name))) is not None:
            return {**_shown(bundle), "path": None, "held": False}
        raise absent(name)

    def listed(self, environment_key: str | None, *, uid: int) -> list[dict[str, Any]]:
        """Those of an environment, or of all, that this uid may ask for, by name. Folder and bytes are looked at then."""
        held = self._shelf.index.read(lambda db: bundles.rows(db, environment_key))
        mine = [row.bundle for row in held if self._may_have(row, uid)]
        return [_shown(bundle) for bundle in mine if bundle.is_signed_with(self._shelf.bundle_key)]

    async def admit(self, wants: Iterable[Want], *, uid: int) -> None:
        """Raises NotFound for a bundle that this uid is not answered."""
        for want in filter(is_bundle, wants):
            row = await self._answer(name_of(want), uid)
            if row is not None and _is_meant(want, row.bundle):
                continue
            if row is not None and self.is_trusted(row):
                raise absent(name_of(want))  # it stays, whatever else is published
            await self._find(want)

    def ref(self, db: sqlite3.Connection, want: Want, *, uid: int) -> RefRow | None:
        """What an admitted want stands for at this moment."""
        row = bundles.find(db, name_of(want))
        if row is None or not self._may_have(row, uid) or row.bundle == self._unsound.get(row.bundle.name):
            return None
        return ref_of(want, row.bundle) if _is_meant(want, row.bundle) else None

    async def check(self, wants: Sequence[Want], refs: Sequence[RefRow], *, uid: int) -> None:
        """The last look before an answer to which one came. Raises Changed when it is not what the name stands for."""
        for want, ref in zip(wants, refs, strict=True):
            if is_bundle(want):
                row = await self._answer(name_of(want), uid)
                if row is None or row.bundle.revision != ref.revision:
                    raise Changed(f"{want.source} was bound anew at this very moment")

    async def resolve(self, want: Want) -> Resolution:
        """What another node published: the only place besides this shelf. Raises NotFound."""
        return self._published.resolution(await self._find(want), str(want.source), want.key)

    async def _find(self, want: Want) -> Bundle:
        bundle = await self._published.find(str(name_of(want)))
        if bundle is None or not _is_meant(want, bundle):
            raise absent(name_of(want))
        return bundle

    async def binding(self, resolution: Resolution) -> BundleBinding | None:
        """What has to be bound when this resolution's files are here: signed anew, as this daemon's own."""
        if not isinstance(there := resolution.built, Bundle):
            return None
        sound = await self.sound(there.name)
        ours = self.binding_of(there.name, there.digest, there.size, there.uid, sound)
        return replace(ours, published_to=self._published.prefix)

    def binding_of(self, name: BundleName, digest: Digest, size: int, uid: int, sound: BundleRow | None) -> BundleBinding:
        """Of what that uid brings, signed. `sound` is what the name is bound to, if that can be served.

        Never issued at the same time as what was bound before: of two documents that survive, the later one counts.
        """
        found = self._shelf.index.read(lambda db: bundles.find(db, name))
        before = None if found is None or not found.bundle.is_signed_with(self._shelf.bundle_key) else found.bundle
        unsound = found.bundle if found is not None and sound is None else None
        keeps = before is not None and before.digest == digest and not self._shelf.trusts(uid)
        builder = before.uid if before is not None and keeps else uid  # made whole again, and still whose it was
        issued = max(int(time.time()), 0 if before is None else before.issued + 1)
        return BundleBinding(Bundle(name, digest, size, builder, issued).signed(self._shelf.bundle_key), uid, unsound)

    async def sound(self, name: BundleName) -> BundleRow | None:
        """What the name is bound to, whoever asks; None, and an event, when that is not what was bound."""
        row = self._shelf.index.read(lambda db: bundles.find(db, name))
        return row if row is not None and row.is_ready and await self._is_sound(row) else None

    def is_trusted(self, row: BundleRow) -> bool:
        return any(map(self._shelf.trusts, row.builders))

    async def _answer(self, name: BundleName, uid: int) -> BundleRow | None:
        """What is held, for this uid. Nothing is looked into for a stranger."""
        row = self._shelf.index.read(lambda db: bundles.find(db, name))
        return row if row is not None and self._may_have(row, uid) and await self._is_sound(row) else None

    def _may_have(self, row: BundleRow, uid: int) -> bool:
        trusted = self._shelf.settings.trusted_uids
        return row.is_ready and (row.published or uid in row.builders or any(one in trusted for one in (uid, *row.builders)))

    async def _is_sound(self, row: BundleRow) -> bool:
        bundle = row.bundle
        why = await self._examining.join(bundle, lambda: self._examine(bundle))
        if why is None:
            self._unsound.pop(bundle.name, None)
        else:
            self._unsound[bundle.name] = bundle
            if len(self._unsound) > REMEMBERED:
                del self._unsound[next(iter(self._unsound))]
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
            await condemn(self._shelf, [bundle.digest], "wrong bytes")
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


def _is_meant(want: Want, bundle: Bundle) -> bool:
    return want.source.pinned in (None, bundle.revision)


def _shown(bundle: Bundle) -> dict[str, Any]:
    return {
        "environment_key": bundle.name.environment_key,
        "graph_key": bundle.name.graph_key,
        "digest": bundle.digest,
        "size": bundle.size,
        "uid": bundle.uid,
        "created_at": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(bundle.issued)),
        "revision": bundle.revision,
        "held": True,
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
