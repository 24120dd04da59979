"""Rows of ingests and their journalled segments. An ingest row is also its reservation: its size counts as held."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.states import IllegalTransition, IngestEvent, IngestState, next_ingest_state
from hotshelf_shared.digest import Digest

#: What stands as the origin of bytes that a worker hands in. Their row expects no digest: no download may join them.
HANDED_IN = "hand-in"


@dataclass(frozen=True, slots=True)
class IngestRow:
    id: str
    origin: str
    key: str
    version: str
    size: int
    expected: Digest | None
    state: IngestState = IngestState.RESERVED


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A journalled segment: [start, stop) of the ingest's file held bytes of this CRC-64/NVME when it was written."""

    start: int
    stop: int
    crc: int


def new_row(origin: str, obj: OriginObject, expected: Digest | None) -> IngestRow:
    """A reservation under a random name, which is also its file's name."""
    return IngestRow(secrets.token_hex(16), origin, obj.key, obj.version, obj.size, expected)


_COLUMNS = "id, origin, key, version, size, expected, state"


def _row(values: Iterable[object]) -> IngestRow:
    id_, origin, key, version, size, expected, state = values
    digest = Digest(str(expected)) if expected else None
    return IngestRow(str(id_), str(origin), str(key), str(version), int(str(size)), digest, IngestState(str(state)))


def find(db: sqlite3.Connection, origin: str, obj: OriginObject, expected: Digest | None) -> IngestRow | None:
    """The ingest of this object, or of another object that is promised to have the same content."""
    by_object = "origin = ? AND key = ? AND version = ? AND size = ?"  # an index finds it; the other looks at every row
    found = db.execute(f"SELECT {_COLUMNS} FROM ingests WHERE {by_object}", (origin, obj.key, obj.version, obj.size)).fetchone()
    if found is None and expected is not None:
        found = db.execute(f"SELECT {_COLUMNS} FROM ingests WHERE expected = ? LIMIT 1", (expected,)).fetchone()
    return _row(found) if found else None


def everything(db: sqlite3.Connection) -> list[IngestRow]:
    return [_row(found) for found in db.execute(f"SELECT {_COLUMNS} FROM ingests ORDER BY touched_at")]


def untouched_since(db: sqlite3.Connection, at: float) -> list[str]:
    return [id_ for (id_,) in map(tuple, db.execute("SELECT id FROM ingests WHERE touched_at < ?", (at,)))]


def reserve(db: sqlite3.Connection, rows: Iterable[IngestRow]) -> None:
    now = time.time()
    db.executemany(
        "INSERT INTO ingests (id, origin, key, version, size, expected, state, opened_at, touched_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(r.id, r.origin, r.key, r.version, r.size, r.expected, IngestState.RESERVED.value, now, now) for r in rows],
    )


def advance(db: sqlite3.Connection, id_: str, event: IngestEvent) -> IngestState:
    """Applies one event to one ingest's row; IllegalTransition changes nothing."""
    following = next_ingest_state(state(db, id_), event)
    db.execute("UPDATE ingests SET state = ?, touched_at = ? WHERE id = ?", (following.value, time.time(), id_))
    return following


def state(db: sqlite3.Connection, id_: str) -> IngestState:
    (found,) = db.execute("SELECT state FROM ingests WHERE id = ?", (id_,)).fetchone()
    return IngestState(found)


def complete(db: sqlite3.Connection, ids: Sequence[str]) -> None:
    """Their bytes are blobs: they go the rest of their way at once, and `close`. IllegalTransition when one has no row."""
    (found,) = db.execute(f"SELECT count(*) FROM ingests WHERE id IN ({', '.join('?' * len(ids))})", ids).fetchone()
    if found != len(set(ids)):
        raise IllegalTransition("an ingest that has no row cannot commit")
    close(db, ids)


def close(db: sqlite3.Connection, ids: Iterable[str]) -> None:
    """Ends ingests: their rows, reservations and journals are gone."""
    listed = [(id_,) for id_ in ids]
    db.executemany("DELETE FROM segments WHERE ingest = ?", listed)
    db.executemany("DELETE FROM ingests WHERE id = ?", listed)


def journal(db: sqlite3.Connection, id_: str, segment: SegmentRow) -> None:
    db.execute(
        "INSERT OR REPLACE INTO segments (ingest, start, stop, crc64nvme) VALUES (?, ?, ?, ?)",
        (id_, segment.start, segment.stop, f"{segment.crc:016x}"),
    )


def journalled(db: sqlite3.Connection, id_: str) -> list[SegmentRow]:
    query = "SELECT start, stop, crc64nvme FROM segments WHERE ingest = ? ORDER BY start"
    return [SegmentRow(start, stop, int(crc, 16)) for start, stop, crc in db.execute(query, (id_,))]


def forget_journal(db: sqlite3.Connection, id_: str) -> None:
    db.execute("DELETE FROM segments WHERE ingest = ?", (id_,))


def interrupt_all(db: sqlite3.Connection) -> None:
    """At start: whatever was under way when the last daemon died waits to be resumed; only a worker's bytes cannot be."""
    close(db, [row.id for row in everything(db) if row.origin == HANDED_IN])
    for row in everything(db):
        if row.state in (IngestState.FETCHING, IngestState.VERIFYING):
            advance(db, row.id, IngestEvent.INTERRUPT)
