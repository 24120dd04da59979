"""Rows of leases and pins: what collection must not touch."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hotshelf_shared.digest import Revision


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """`resolution` holds what is being fetched until `revision` is known."""

    id: str
    uid: int
    pid: int
    client: str | None
    source: str
    ttl_s: float
    resolution: str | None = None
    revision: Revision | None = None
    grant: int = 0

    def granted(self, number: int) -> LeaseRow:
        """With its grant number; spelt out because dataclasses.replace takes ten times as long and every hit does it."""
        return LeaseRow(
            self.id, self.uid, self.pid, self.client, self.source, self.ttl_s, self.resolution, self.revision, number
        )


@dataclass(frozen=True, slots=True)
class PinRow:
    """`kind` is ``revision`` (holds just that), ``name`` (follows the ref of `wish`) or ``configured`` (as name)."""

    target: str
    kind: str
    wish: str | None
    uid: int
    created_at: float


def open_(db: sqlite3.Connection, row: LeaseRow) -> int:
    """The grant number. Raises LookupError when the revision is not ready: then there is nothing to hold."""
    now = time.time()
    cursor = db.execute(
        "INSERT INTO leases (id, uid, pid, client, source, resolution, revision, ttl_s, granted_at, renewed_at)"
        " SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9"
        " WHERE ?7 IS NULL OR EXISTS (SELECT 1 FROM snapshots WHERE revision = ?7 AND state = 'ready')",
        (row.id, row.uid, row.pid, row.client, row.source, row.resolution, row.revision, row.ttl_s, now),
    )
    if not cursor.rowcount:
        raise LookupError(row.revision)
    return int(cursor.lastrowid or 0)


def enter(db: sqlite3.Connection, rows: Iterable[LeaseRow]) -> None:
    """Leases that were granted while the index could not be written; their numbers there are new ones."""
    now = time.time()
    db.executemany(
        "INSERT OR IGNORE INTO leases (grant_number, id, uid, pid, client, source, resolution, revision, ttl_s, granted_at,"
        " renewed_at) SELECT NULL, ?1, ?2, ?3, ?4, ?5, NULL, ?6, ?7, ?8, ?8",
        [(row.id, row.uid, row.pid, row.client, row.source, row.revision, row.ttl_s, now) for row in rows],
    )


def newest_grant(db: sqlite3.Connection) -> int:
    found = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'leases'").fetchone()
    return int(found[0]) if found else 0


def bind(db: sqlite3.Connection, resolution: str, revision: Revision) -> None:
    """Whoever waits for this resolution holds its revision from now on."""
    db.execute("UPDATE leases SET revision = ?, resolution = NULL WHERE resolution = ?", (revision, resolution))


def bind_one(db: sqlite3.Connection, id_: str, revision: Revision) -> None:
    db.execute("UPDATE leases SET revision = ?, resolution = NULL WHERE id = ?", (revision, id_))


def close(db: sqlite3.Connection, ids: Iterable[str]) -> None:
    db.executemany("DELETE FROM leases WHERE id = ?", [(id_,) for id_ in ids])


def renew(db: sqlite3.Connection, ids: Iterable[str]) -> None:
    now = time.time()
    db.executemany("UPDATE leases SET renewed_at = ? WHERE id = ?", [(now, id_) for id_ in ids])


def everything(db: sqlite3.Connection) -> list[LeaseRow]:
    rows = db.execute("SELECT id, uid, pid, client, source, ttl_s, resolution, revision, grant_number FROM leases")
    return [
        LeaseRow(id_, uid, pid, client, source, ttl_s, resolution, Revision(revision) if revision else None, grant)
        for id_, uid, pid, client, source, ttl_s, resolution, revision, grant in rows
    ]


def void_unbound(db: sqlite3.Connection) -> None:
    """At start: a lease whose acquire was never answered has no holder."""
    db.execute("DELETE FROM leases WHERE revision IS NULL")


def holders(db: sqlite3.Connection, limit: int = 10) -> list[dict[str, Any]]:
    """Who keeps how much from being collected: what `insufficient_space` names, largest first."""
    rows = db.execute(
        "SELECT s.revision, s.bytes, count(l.id) AS leases, group_concat(DISTINCT l.uid) AS uids,"
        " group_concat(DISTINCT l.source) AS sources,"
        " EXISTS (SELECT 1 FROM v_pins p WHERE p.revision = s.revision) AS pinned"
        " FROM snapshots s LEFT JOIN leases l ON l.revision = s.revision"
        " GROUP BY s.revision HAVING leases > 0 OR pinned ORDER BY s.bytes DESC LIMIT ?",
        (limit,),
    ).fetchall()
    names = ("revision", "bytes", "leases", "uids", "sources", "pinned")
    return [dict(zip(names, row, strict=True)) for row in map(tuple, rows)]


def passing_bytes(db: sqlite3.Connection, *, client: str | None, ingests: Sequence[str]) -> int:
    """What is held only until something ends, each blob once: leases of others than `client`, acquires, hand-ins, and these
    downloads under way. What `client` leases or a pin holds as well does not count."""
    (size,) = db.execute(
        "WITH staying AS (SELECT digest FROM files WHERE revision IN (SELECT revision FROM v_pins)"
        " OR revision IN (SELECT revision FROM leases WHERE client = :client)),"
        " leased AS (SELECT revision FROM leases WHERE client IS NULL OR client IS NOT :client),"
        " passing AS (SELECT digest FROM files WHERE revision IN leased"
        " UNION SELECT digest FROM handed_in UNION SELECT digest FROM wanted_blobs)"
        " SELECT (SELECT coalesce(sum(size), 0) FROM ingests WHERE id IN (SELECT value FROM json_each(:ingests)))"
        " + (SELECT coalesce(sum(size), 0) FROM blobs WHERE digest IN passing AND digest NOT IN staying)",
        {"client": client, "ingests": json.dumps(list(ingests))},
    ).fetchone()
    return int(size)


# ---- pins


def pin(db: sqlite3.Connection, row: PinRow) -> None:
    db.execute("INSERT OR REPLACE INTO pins (target, kind, wish, uid, created_at) VALUES (?, ?, ?, ?, ?)", _values(row))


def unpin(db: sqlite3.Connection, target: str) -> bool:
    return db.execute("DELETE FROM pins WHERE target = ?", (target,)).rowcount > 0


def pins(db: sqlite3.Connection) -> list[PinRow]:
    return [PinRow(*row) for row in map(tuple, db.execute("SELECT target, kind, wish, uid, created_at FROM pins"))]


def _values(row: PinRow) -> Sequence[object]:
    return row.target, row.kind, row.wish, row.uid, row.created_at
