"""Which of what is held shows to whoever holds no lease: below `hub/` the hub's own repositories, and configured names as
`shelf/NAME`; below `names/` configured names again, each at a path that stays; below `model_cache/` what Truss's list names,
where Truss would put it.

What shows there is read by programs that hold no lease. So what the configuration wants shown (`view`) is pinned, and what
goes leaves the view before its bytes do. What may not be served does not show either.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from hotshelf_daemon.index import snapshots
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import hub, places
from hotshelf_daemon.store.hub import Entry
from hotshelf_daemon.store.places import Place
from hotshelf_shared.digest import Revision
from hotshelf_shared.errors import HotshelfError
from hotshelf_shared.source import Source

log = logging.getLogger(__name__)
#: The organisation of what has a name here and none at the hub.
ORGANISATION = "shelf"


def revisions(shelf: Shelf, db: sqlite3.Connection) -> set[Revision]:
    """What refs name that show: somebody may be reading it without a lease."""
    return {ref.revision for ref in snapshots.refs(db) if _shows(shelf, ref) or ref.wish in shelf.places}


def _shows(shelf: Shelf, ref: RefRow) -> bool:
    return ref.commit is not None or ref.wish in shelf.shown


def staying(shelf: Shelf, db: sqlite3.Connection) -> set[tuple[str, str]]:
    """Folder and commit of all that shows: what is about to leave is not among the refs any more."""
    return {(entry.folder, entry.commit) for ref in snapshots.refs(db) for entry in _named(shelf, db, ref)}


async def show(shelf: Shelf, refs: Sequence[RefRow]) -> None:
    """After these refs stand: they show, or what they stand for by now does."""
    if any(_shows(shelf, ref) for ref in refs):
        found = await shelf.index.look(lambda db: [entry for ref in refs for entry in _of(shelf, db, ref)])
        await asyncio.to_thread(_show, shelf, found)
    if any(ref.wish in shelf.places for ref in refs):
        wanted = await shelf.index.look(lambda db: [place for ref in refs for place in _places(shelf, db, ref)])
        await asyncio.to_thread(_place, shelf, wanted)


async def reconcile(shelf: Shelf) -> None:
    """At start, when it is known what is held and what is configured: that shows, and nothing else is named there."""
    found = await shelf.index.look(lambda db: [entry for ref in reversed(snapshots.refs(db)) for entry in _of(shelf, db, ref)])
    await asyncio.to_thread(hub.keep_only, shelf.layout, found)
    await asyncio.to_thread(_show, shelf, found)
    wanted = await shelf.index.look(lambda db: [place for ref in snapshots.refs(db) for place in _places(shelf, db, ref)])
    await asyncio.to_thread(places.keep_only, shelf.layout, wanted)
    await asyncio.to_thread(_place, shelf, wanted)


def _of(shelf: Shelf, db: sqlite3.Connection, ref: RefRow) -> Iterator[Entry]:
    for entry in _named(shelf, db, ref):
        yield replace(entry, files={path: one.digest for path, one in snapshots.manifest(db, ref.revision).items()})


def _named(shelf: Shelf, db: sqlite3.Connection, ref: RefRow) -> Iterator[Entry]:
    """Its entries, without their files."""
    if not _shows(shelf, ref) or not _is_served(shelf, db, ref):
        return
    for name in shelf.shown.get(ref.wish, ()):
        yield Entry(ORGANISATION, name, ref.revision.hex[:40], {})
    source = Source.parse(ref.source)
    # The hub may have an organisation of that name too: nobody who reads a configured name is to get what is theirs.
    if ref.commit is not None and source.authority != ORGANISATION:
        yield Entry(source.authority, source.path, ref.commit, {}, None if source.is_fixed else source.ref or "main")


def _places(shelf: Shelf, db: sqlite3.Connection, ref: RefRow) -> Iterator[Place]:
    folders = shelf.places.get(ref.wish, ())
    if folders and _is_served(shelf, db, ref):
        file = next(iter(snapshots.manifest(db, ref.revision))) if ref.kind == "file" else None
        for folder in folders:  # for Truss an object's own key is that file; any other place holds it
            is_file = file is not None and folder.startswith("model_cache/") and folder.endswith(f"/{file}")
            yield Place(folder, ref.revision, file if is_file else None)


def _is_served(shelf: Shelf, db: sqlite3.Connection, ref: RefRow) -> bool:
    return shelf.keyring.accepts(Source.parse(ref.source), ref.signed_by) and snapshots.is_ready(db, ref.revision)


def _show(shelf: Shelf, some: Iterable[Entry]) -> None:
    for entry in some:
        try:
            hub.show(shelf.layout, entry)
        except HotshelfError as error:
            # Who holds a lease does not read it there; the next start makes what is missing.
            log.warning(
                "it does not show below hub/", extra={"repository": entry.folder, "code": error.code, "why": error.message}
            )


def _place(shelf: Shelf, some: Iterable[Place]) -> None:
    for place in some:
        try:
            places.show(shelf.layout, place)
        except HotshelfError as error:
            why = {"folder": place.folder, "code": error.code, "why": error.message}
            log.warning("it does not show where it should", extra=why)
