"""Rollbacks after a crash or a lost index: rows and records made to agree.

Records are changed first, and nobody is told before the row is, so a row wins. A record without a row is a lost index's as long
as its ref stands where it says, or was evicted; else it is of a rollback that was cut off.
"""

from __future__ import annotations

import os
import sqlite3
from functools import partial

from hotshelf_daemon.index import Index, rollbacks, snapshots
from hotshelf_daemon.index.rollbacks import RollbackRow
from hotshelf_daemon.store import Layout, trees
from hotshelf_shared.errors import InvalidRequest


def reconcile(layout: Layout, index: Index) -> None:
    known = {trees.rollback_record(row.source): row for row in index.read(rollbacks.everything)}
    for name in sorted(os.listdir(layout["refs"])):
        record = name.removesuffix(".json")
        if not record.endswith(trees.ROLLBACK) or record in known:
            continue
        row = _parsed(layout, record)
        if row is None or not index.read(partial(_agrees, row=row)):
            layout.discard(layout["refs"], name)
        else:
            index.write_now(partial(rollbacks.put, row=row), durable=True)
    for record, row in known.items():
        if _parsed(layout, record) != row:
            trees.write_json(layout, "refs", record, row.to_json())


def _agrees(db: sqlite3.Connection, *, row: RollbackRow) -> bool:
    ref = snapshots.ref(db, row.wish)
    return ref is None or (ref.source, ref.revision) == (row.source, row.revision)


def _parsed(layout: Layout, record: str) -> RollbackRow | None:
    """None for none, or one that is another source's or broken."""
    try:
        row = RollbackRow.parse(trees.record(layout, "refs", f"{record}.json"))
    except (KeyError, TypeError, ValueError, OverflowError, InvalidRequest):
        return None
    return row if trees.rollback_record(row.source) == record else None
