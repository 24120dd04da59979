"""Which of what is held shows to whoever holds no lease: every configured name below `hub/`, as the repository `shelf/NAME`,
and what Truss's list names below `model_cache/`, where Truss would put it.

What shows there is read by programs that hold no lease. So what the configuration wants shown (`view`) is pinned, and what
goes leaves the view before its bytes do.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator

from hotshelf_daemon.index import snapshots
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import hub, model_cache
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
    return {ref.revision for ref in snapshots.refs(db) if ref.wish in shelf.shown or ref.wish in shelf.folders}


def show(shelf: Shelf, ref: RefRow) -> None:
    """After its ref stands: it shows, or what it stands for by now does. Blocks."""
    _show(shelf, shelf.index.read(lambda db: [*_of(shelf, db, ref)]))
    _place(shelf, [ref])


def reconcile(shelf: Shelf) -> None:
    """At start, when it is known what is held and what is configured: whatever is to show does. Blocks."""
    _show(shelf, shelf.index.read(lambda db: entries(shelf, db)))
    wanted = shelf.index.read(lambda db: [ref for ref in snapshots.refs(db) if snapshots.is_ready(db, ref.revision)])
    folders = {folder for ref in wanted for folder in shelf.folders.get(ref.wish, ())}
    try:
        model_cache.keep(shelf.layout, folders)
    except HotshelfError as error:
        log.warning("something shows below model_cache/ that is to no more", extra={"code": error.code, "why": error.message})
    _place(shelf, wanted)


def _show(shelf: Shelf, some: Iterable[Entry]) -> None:
    for entry in some:
        try:
            hub.show(shelf.layout, entry)
        except HotshelfError as error:
            # Who holds a lease does not read it there; the next start makes what is missing.
            log.warning(
                "it does not show below hub/", extra={"repository": entry.folder, "code": error.code, "why": error.message}
            )


def _place(shelf: Shelf, refs: Iterable[RefRow]) -> None:
    for ref in refs:
        for folder in shelf.folders.get(ref.wish, ()):
            try:
                model_cache.show(shelf.layout, folder, ref.revision, _file_at(shelf, ref, folder))
            except HotshelfError as error:
                why = {"folder": folder, "code": error.code, "why": error.message}
                log.warning("it does not show below model_cache/", extra=why)


def _file_at(shelf: Shelf, ref: RefRow, folder: str) -> str | None:
    """The one file that has a place by its whole key; None where a folder is meant."""
    if ref.kind != "file":
        return None
    (name,) = shelf.index.read(lambda db: snapshots.manifest(db, ref.revision))
    return name if folder.endswith(f"/{name}") else None
