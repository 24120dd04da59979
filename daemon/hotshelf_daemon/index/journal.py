"""What happened: requests, evictions and events. History for people; nothing is decided from it here."""

from __future__ import annotations

import sqlite3
import time

from hotshelf_shared.digest import Revision

KEPT_ROWS = 200_000


def request(
    db: sqlite3.Connection,
    *,
    source: str,
    revision: Revision | None,
    outcome: str,
    duration_s: float,
    uid: int,
    error: str | None = None,
) -> None:
    db.execute(
        "INSERT INTO requests (at, source, revision, outcome, duration_s, uid, error) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (time.time(), source, revision, outcome, round(duration_s, 6), uid, error),
    )


def eviction(db: sqlite3.Connection, revision: Revision | None, size: int, reason: str) -> None:
    db.execute("INSERT INTO evictions (at, revision, bytes, reason) VALUES (?, ?, ?, ?)", (time.time(), revision, size, reason))


def event(db: sqlite3.Connection, kind: str, subject: str, detail: str = "") -> None:
    db.execute("INSERT INTO events (at, kind, subject, detail) VALUES (?, ?, ?, ?)", (time.time(), kind, subject, detail))


def trim(db: sqlite3.Connection) -> None:
    for table in ("requests", "evictions", "events"):
        db.execute(f"DELETE FROM {table} WHERE id <= (SELECT max(id) FROM {table}) - ?", (KEPT_ROWS,))
