"""Rows of resolutions while they are prepared, and of the blobs that they count on meanwhile."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable

from hotshelf_daemon.states import SnapshotEvent, SnapshotState, next_snapshot_state
from hotshelf_shared.digest import Digest


def open_(db: sqlite3.Connection, id_: str, *, source: str, size: int, files: int) -> None:
    """A resolution starts to be prepared; the blobs that `want` adds to it are roots until it ends."""
    found = db.execute("SELECT state FROM resolutions WHERE id = ?", (id_,)).fetchone()
    current = SnapshotState(found[0]) if found else SnapshotState.ABSENT
    if current is not SnapshotState.PREPARING:
        current = next_snapshot_state(current, SnapshotEvent.PREPARE)
    db.execute(
        "INSERT OR REPLACE INTO resolutions (id, source, state, bytes, files, opened_at) VALUES (?, ?, ?, ?, ?, ?)",
        (id_, source, current.value, size, files, time.time()),
    )


def want(db: sqlite3.Connection, id_: str, blobs: Iterable[Digest]) -> None:
    db.executemany("INSERT OR IGNORE INTO wanted_blobs (resolution, digest) VALUES (?, ?)", [(id_, blob) for blob in blobs])


def fail(db: sqlite3.Connection, id_: str, error: str) -> None:
    failed = next_snapshot_state(SnapshotState.PREPARING, SnapshotEvent.FAIL)
    db.execute("UPDATE resolutions SET state = ?, error = ? WHERE id = ?", (failed.value, error, id_))
    db.execute("DELETE FROM wanted_blobs WHERE resolution = ?", (id_,))


def close(db: sqlite3.Connection, id_: str) -> None:
    """It became a snapshot, whose files are now what holds its blobs."""
    db.execute("DELETE FROM resolutions WHERE id = ?", (id_,))
    db.execute("DELETE FROM wanted_blobs WHERE resolution = ?", (id_,))


def forget_all(db: sqlite3.Connection) -> None:
    """At start nobody waits for any of them; what they fetched stays, and their ingests are resumed when asked for."""
    db.execute("DELETE FROM resolutions")
    db.execute("DELETE FROM wanted_blobs")
