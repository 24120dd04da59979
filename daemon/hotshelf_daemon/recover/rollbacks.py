"""Rollbacks after a crash or a lost index: rows and records made to agree.

A row is made before its record, and a record goes before its row: so a record without a row is a lost index's, and a row
without a record is an answer that was never given, or a refresh that was cut off. Either way the source stays frozen.
"""

from __future__ import annotations

import os
from functools import partial

from hotshelf_daemon.index import Index, rollbacks
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
        if row is None:
            layout.discard(layout["refs"], name)
        else:
            index.write_now(partial(rollbacks.put, row=row), durable=True)
    for record, row in known.items():
        if _parsed(layout, record) != row:
            trees.write_json(layout, "refs", record, row.to_json())


def _parsed(layout: Layout, record: str) -> RollbackRow | None:
    """None for none, or one that is another source's or broken."""
    try:
        row = RollbackRow.parse(trees.record(layout, "refs", f"{record}.json"))
    except (KeyError, TypeError, ValueError, OverflowError, InvalidRequest):
        return None
    return row if trees.rollback_record(row.source) == record else None
