"""At start: the index and the disk are made to agree, whatever the last daemon died of. Converges unaided, every time.

A row without its file is dropped and its snapshots are damaged; a file without a row is hashed, then adopted or
quarantined (`strangers`); unfinished deletions are finished; leftovers of unfinished work go. What stands in manifests/,
refs/ and pins/ rebuilds an index that was lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from hotshelf_daemon.index import Index, blobs, ingests, journal, leases, preparing, snapshots
from hotshelf_daemon.index.leases import PinRow
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.recover import bundles, pipelines, rollbacks, strangers
from hotshelf_daemon.store import Layout, hub, places, trees
from hotshelf_daemon.store import blobs as files
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import InvalidRequest

log = logging.getLogger(__name__)
_INGEST_NAME = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True, slots=True)
class Recovered:
    """What had to be put right; all zero after a clean stop."""

    lost: int
    adopted: int
    quarantined: int
    damaged: int
    rebuilt: int


def recover(layout: Layout, index: Index, bundle_key: bytes) -> Recovered:
    """Runs before anything is served. Safe to be killed at any point and run again.

    Of bundles only those are believed that are signed with `bundle_key`.
    """
    index.write_now(_forget_what_was_under_way)
    _empty_trash(layout)
    _finish_deletions(layout, index)
    lost = _rows_without_files(layout, index)
    damaged = index.write_now(lambda db: _lose(db, lost), durable=True) if lost else []
    nameless = strangers.remove_nameless(layout)
    verdicts = strangers.judge(layout, strangers.unknown(layout, index))
    adopted = strangers.place(layout, index, verdicts)
    hub.prune(layout)
    places.prune(layout)
    _drop_leftovers(layout, index)
    rebuilt = _adopt_manifests(layout, index)
    _lay_out_missing(layout, index)
    _adopt_refs(layout, index)
    rollbacks.reconcile(layout, index)
    _adopt_pins(layout, index)
    rebuilt += pipelines.reconcile(layout, index)
    rebuilt += bundles.reconcile(layout, index, bundle_key)
    found = Recovered(len(lost), adopted, nameless + len(verdicts) - adopted, len(damaged), rebuilt)
    if found != Recovered(0, 0, 0, 0, 0):
        log.warning("the store was put right", extra={name: getattr(found, name) for name in Recovered.__slots__})
    return found


def _forget_what_was_under_way(db: sqlite3.Connection) -> None:
    ingests.interrupt_all(db)
    preparing.forget_all(db)
    leases.void_unbound(db)


def _empty_trash(layout: Layout) -> None:
    for name in _names(layout, "trash"):
        with contextlib.suppress(FileNotFoundError):
            layout.remove("trash", name)


def _finish_deletions(layout: Layout, index: Index) -> None:
    if marked := index.read(blobs.deleting):
        hub.hide(layout, marked)
        known = index.read(lambda db: {Revision(row[0]) for row in db.execute("SELECT revision FROM snapshots")})
        places.hide(layout, places.revisions(layout) - known)
        files.discard(layout, marked)
        index.write_now(lambda db: blobs.remove(db, marked), durable=True)


def _rows_without_files(layout: Layout, index: Index) -> list[Digest]:
    held = index.read(blobs.everything)
    return [digest for digest, size in held.items() if files.size_of(layout, digest) != size]


def _lose(db: sqlite3.Connection, lost: Iterable[Digest]) -> list[Revision]:
    lost = list(lost)
    damaged = snapshots.damage(db, lost, "bytes lost")
    blobs.remove(db, lost)
    for digest in lost:
        journal.event(db, "lost", digest, "the blob's file was gone or had another size at start")
    return damaged


def _drop_leftovers(layout: Layout, index: Index) -> None:
    """Unfinished trees and records go; an ingest's file stays as long as its row wants to resume it."""
    resumable = {row.id for row in index.read(ingests.everything)}
    present = set(_names(layout, "ingest"))
    for name in present:
        if not _INGEST_NAME.match(name) or name not in resumable:
            layout.remove("ingest", name)
    empty = [id_ for id_ in resumable if id_ not in present]
    if empty:  # nothing was written for them: a reservation that nobody holds is none
        index.write_now(lambda db: ingests.close(db, empty))


def _adopt_manifests(layout: Layout, index: Index) -> int:
    """Manifests that the index does not know: a snapshot when all its blobs are held, otherwise litter."""
    known = set(index.read(lambda db: [row[0] for row in db.execute("SELECT revision FROM snapshots")]))
    held = index.read(blobs.everything)
    count = 0
    for name in _names(layout, "manifests"):
        if f"sha256:{name.removesuffix('.json')}" in known:
            continue
        tree = trees.manifest(layout, name)
        if tree is not None and all(held.get(digest) == size for digest, size in tree.blobs().items()):
            trees.lay_out(layout, tree)
            index.write_now(partial(snapshots.add, tree=tree), durable=True)
            known.add(tree.revision)
            count += 1
        else:
            layout.discard(layout["manifests"], name)
    for name in trees.names(layout):
        if f"sha256:{name}" not in known:
            layout.discard(layout["snapshots"], name)
    return count


def _lay_out_missing(layout: Layout, index: Index) -> None:
    """A ready snapshot whose directory or manifest record was deleted by hand."""
    rows = index.read(lambda db: [Revision(r[0]) for r in db.execute("SELECT revision FROM snapshots WHERE state = 'ready'")])
    laid_out, recorded = set(trees.names(layout)), set(_names(layout, "manifests"))
    for revision in rows:
        if revision.hex not in laid_out or f"{revision.hex}.json" not in recorded:
            trees.lay_out(layout, index.read(partial(snapshots.manifest, revision=revision)))


def _adopt_refs(layout: Layout, index: Index) -> None:
    """A row wins over its record, which is written first: nobody had been told yet."""
    known = {row.wish: row for row in index.read(snapshots.refs)}
    for name in _names(layout, "refs"):
        wish = name.removesuffix(".json")
        if wish in known or wish.endswith(trees.ROLLBACK):
            continue
        row = _ref_record(layout, wish)
        if row is None or not index.write_now(partial(_adopt_ref, row=row), durable=True):
            layout.discard(layout["refs"], name)
    for wish, row in known.items():
        if _ref_record(layout, wish) != row.recorded:
            trees.write_json(layout, "refs", wish, row.to_json())


def _ref_record(layout: Layout, wish: str) -> RefRow | None:
    """The ref that is recorded for a wish; None for none, or one that says something else."""
    try:
        row = RefRow.parse(trees.record(layout, "refs", f"{wish}.json"))
    except (KeyError, TypeError, ValueError, InvalidRequest):
        return None
    return row if row.wish == wish else None


def _adopt_ref(db: sqlite3.Connection, *, row: RefRow) -> bool:
    if ready := snapshots.is_ready(db, row.revision):
        snapshots.flip(db, row)
    return ready


def _adopt_pins(layout: Layout, index: Index) -> None:
    known = {row.target for row in index.read(leases.pins)}
    for name in _names(layout, "pins"):
        body = trees.record(layout, "pins", name)
        with contextlib.suppress(KeyError, TypeError, ValueError):
            row = PinRow(str(body["target"]), str(body["kind"]), body["wish"], int(body["uid"]), float(body["created_at"]))
            if row.target not in known:
                index.write_now(partial(leases.pin, row=row), durable=True)


def _names(layout: Layout, folder: str) -> list[str]:
    with os.scandir(layout[folder]) as entries:
        return sorted(entry.name for entry in entries)
