"""Which of what is held shows below `hub/`, and as which repository: every configured name, as `shelf/NAME`.

What shows there is read by programs that hold no lease. So what the configuration wants shown (`view`) is pinned, and what
goes leaves the view before its bytes do.
"""

from __future__ import annotations

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

log = logging.getLogger(__name__)

#: The organisation of what has a name here and none at the hub.
ORGANISATION = "shelf"


def entries(shelf: Shelf, db: sqlite3.Connection) -> list[Entry]:
    """All that is to show."""
    return [entry for ref in snapshots.refs(db) if snapshots.is_ready(db, ref.revision) for entry in _of(shelf, db, ref)]


def _of(shelf: Shelf, db: sqlite3.Connection, ref: RefRow) -> Iterator[Entry]:
    names = shelf.shown.get(ref.wish, ())
    if not names:
        return
    files = {path: entry.digest for path, entry in snapshots.manifest(db, ref.revision).items()}
    for name in names:
        yield Entry(ORGANISATION, name, ref.revision.hex[:40], files)


def revisions(shelf: Shelf, db: sqlite3.Connection) -> set[Revision]:
    """What shows now: somebody may be reading it without a lease."""
    return {ref.revision for ref in snapshots.refs(db) if ref.wish in shelf.shown}


def show(shelf: Shelf, refs: Sequence[RefRow]) -> None:
    """After these refs stand: they show, or what they stand for by now does. Blocks."""
    _show(shelf, shelf.index.read(lambda db: [entry for ref in refs for entry in _of(shelf, db, ref)]))


def reconcile(shelf: Shelf) -> None:
    """At start, when it is known what is held and what is configured: whatever is to show does. Blocks."""
    _show(shelf, shelf.index.read(lambda db: entries(shelf, db)))


def _show(shelf: Shelf, some: Iterable[Entry]) -> None:
    for entry in some:
        try:
            hub.show(shelf.layout, entry)
        except HotshelfError as error:
            # Who holds a lease does not read it there; the next start makes what is missing.
            log.warning(
                "it does not show below hub/", extra={"repository": entry.folder, "code": error.code, "why": error.message}
            )
