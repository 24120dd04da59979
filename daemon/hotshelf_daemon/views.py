"""Which of what is held shows below `hub/`, and as which repository: the hub's own, and configured names as `shelf/NAME`.

What shows there is read by programs that hold no lease. So what the configuration wants shown (`view`) is pinned, and what
goes leaves the view before its bytes do. What may not be served does not show either.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from hotshelf_daemon.index import snapshots
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import hub
from hotshelf_daemon.store.hub import Entry
from hotshelf_shared.digest import Revision
from hotshelf_shared.errors import HotshelfError
from hotshelf_shared.source import Source

log = logging.getLogger(__name__)
#: The organisation of what has a name here and none at the hub.
ORGANISATION = "shelf"


def revisions(shelf: Shelf, db: sqlite3.Connection) -> set[Revision]:
    """What refs name that show: somebody may be reading it without a lease."""
    return {ref.revision for ref in snapshots.refs(db) if _shows(shelf, ref)}


def _shows(shelf: Shelf, ref: RefRow) -> bool:
    return ref.commit is not None or ref.wish in shelf.shown


async def show(shelf: Shelf, refs: Sequence[RefRow]) -> None:
    """After these refs stand: they show, or what they stand for by now does."""
    if any(_shows(shelf, ref) for ref in refs):
        found = await shelf.index.look(lambda db: [entry for ref in refs for entry in _of(shelf, db, ref)])
        await asyncio.to_thread(_show, shelf, found)


async def reconcile(shelf: Shelf) -> None:
    """At start, when it is known what is held and what is configured: that shows, and nothing else is named there."""
    found = await shelf.index.look(lambda db: [entry for ref in reversed(snapshots.refs(db)) for entry in _of(shelf, db, ref)])
    await asyncio.to_thread(hub.keep_only, shelf.layout, found)
    await asyncio.to_thread(_show, shelf, found)


def _of(shelf: Shelf, db: sqlite3.Connection, ref: RefRow) -> Iterator[Entry]:
    source = Source.parse(ref.source)
    if not _shows(shelf, ref) or not shelf.keyring.accepts(source, ref.signed_by) or not snapshots.is_ready(db, ref.revision):
        return
    files = {path: entry.digest for path, entry in snapshots.manifest(db, ref.revision).items()}
    for name in shelf.shown.get(ref.wish, ()):
        yield Entry(ORGANISATION, name, ref.revision.hex[:40], files)
    if ref.commit is not None:
        yield Entry(source.authority, source.path, ref.commit, files, None if source.is_fixed else source.ref or "main")


def _show(shelf: Shelf, some: Iterable[Entry]) -> None:
    for entry in some:
        try:
            hub.show(shelf.layout, entry)
        except HotshelfError as error:
            # Who holds a lease does not read it there; the next start makes what is missing.
            log.warning(
                "it does not show below hub/", extra={"repository": entry.folder, "code": error.code, "why": error.message}
            )
