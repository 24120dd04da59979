"""Pipelines after a crash or a lost index: rows, folders and refs of `pipelines/` made to agree.

A row wins over its folder, which is written anew. A folder without a row is adopted only when its document gives the very
key of the folder and its snapshot is ready; anything else in there goes to quarantine, and is never believed.
"""

from __future__ import annotations

import sqlite3

from hotshelf_daemon.index import Index, journal, pipelines, snapshots
from hotshelf_daemon.store import Layout, trees
from hotshelf_daemon.store import pipelines as folders
from hotshelf_shared.built import Built


def reconcile(layout: Layout, index: Index) -> int:
    """Runs when snapshots and refs have been put right. How many were adopted."""
    _drop_rows_without_snapshot(layout, index)
    known = index.read(_everything)
    adopted = 0
    for name in folders.names(layout):
        if name not in known:
            adopted += _adopt(layout, index, name)
        elif folders.read(layout, name) != known[name]:
            folders.put(layout, known[name])
    for key in known.keys() - set(folders.names(layout)):
        folders.put(layout, known[key])
    _drop_refs_without_row(layout, index)
    return adopted


def _everything(db: sqlite3.Connection) -> dict[str, Built]:
    rows = {key: pipelines.built(db, key) for key in pipelines.keys(db)}
    return {key: built for key, built in rows.items() if built is not None}


def _drop_rows_without_snapshot(layout: Layout, index: Index) -> None:
    query = "SELECT key FROM pipelines WHERE revision NOT IN (SELECT revision FROM snapshots)"
    if gone := index.read(lambda db: [key for (key,) in db.execute(query)]):
        for wish in index.write_now(lambda db: pipelines.drop(db, gone), durable=True):
            trees.drop_record(layout, "refs", f"{wish}.json")


def _adopt(layout: Layout, index: Index, name: str) -> bool:
    built = folders.read(layout, name)
    if built is None:
        kept = layout.quarantine(layout["pipelines"], name)
        why = f"its build.json does not say what the folder is; kept as quarantine/{kept}"
        index.write_now(lambda db: journal.event(db, "pipeline_refused", f"pipeline:{name}"[:200], why))
        return False
    if not index.read(lambda db: snapshots.is_ready(db, built.revision)):
        folders.remove(layout, name)  # evicted half-way, or its blobs are lost: nothing that could be served
        return False
    for wish in index.write_now(lambda db: pipelines.put(db, built), durable=True):
        trees.drop_record(layout, "refs", f"{wish}.json")
    return True


def _drop_refs_without_row(layout: Layout, index: Index) -> None:
    """A ref of a key that stands for nothing, or for another tree, names what nobody is answered."""

    def stale(db: sqlite3.Connection) -> list[str]:
        rows = db.execute("SELECT wish, source, revision FROM refs WHERE source LIKE 'pipeline:%'").fetchall()
        bound = {f"pipeline:{row.key}": row.revision for key in pipelines.keys(db) if (row := pipelines.find(db, key))}
        return [wish for wish, source, revision in rows if bound.get(source.partition("@")[0]) != revision]

    if wishes := index.read(stale):
        index.write_now(lambda db: snapshots.drop_refs(db, wishes), durable=True)
        for wish in wishes:
            trees.drop_record(layout, "refs", f"{wish}.json")
