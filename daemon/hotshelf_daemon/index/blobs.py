"""Rows of blobs, of what each snapshot's files are, and of what was learnt about objects at origins."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hotshelf_shared.digest import Digest


@dataclass(frozen=True, slots=True)
class Learnt:
    """What an origin's object turned out to be: its digest, or why it was left out."""

    origin: str
    key: str
    version: str
    size: int
    digest: Digest
    unsafe: str | None = None


def sizes(db: sqlite3.Connection, digests: Iterable[Digest]) -> dict[Digest, int]:
    """The held ones among `digests`, with their sizes."""
    held = {}
    for chunk in _chunks(list(digests)):
        marks = ",".join("?" * len(chunk))
        for digest, size in db.execute(f"SELECT digest, size FROM blobs WHERE deleting = 0 AND digest IN ({marks})", chunk):
            held[Digest(digest)] = int(size)
    return held


def everything(db: sqlite3.Connection) -> dict[Digest, int]:
    return {Digest(digest): int(size) for digest, size in db.execute("SELECT digest, size FROM blobs WHERE deleting = 0")}


def add(db: sqlite3.Connection, blobs: Mapping[Digest, int], unsafe: Mapping[Digest, str | None] = {}) -> None:
    """`unsafe` says why a blob was let in only by an operator's leave: no other wish may see it."""
    now = time.time()
    db.executemany(
        "INSERT INTO blobs (digest, size, committed_at, verified_at, unsafe) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (digest) DO UPDATE SET deleting = 0, verified_at = excluded.verified_at",
        [(digest, size, now, now, unsafe.get(digest)) for digest, size in blobs.items()],
    )


def unsafe(db: sqlite3.Connection) -> dict[Digest, str]:
    """The held blobs that execute, and why they are thought to: few or none."""
    return {Digest(digest): why for digest, why in db.execute("SELECT digest, unsafe FROM blobs WHERE unsafe IS NOT NULL")}


def mark_deleting(db: sqlite3.Connection, digests: Iterable[Digest]) -> None:
    db.executemany("UPDATE blobs SET deleting = 1 WHERE digest = ?", [(digest,) for digest in digests])


def deleting(db: sqlite3.Connection) -> list[Digest]:
    return [Digest(digest) for (digest,) in db.execute("SELECT digest FROM blobs WHERE deleting = 1")]


def remove(db: sqlite3.Connection, digests: Iterable[Digest]) -> None:
    db.executemany("DELETE FROM blobs WHERE digest = ?", [(digest,) for digest in digests])


def mark_verified(db: sqlite3.Connection, digests: Iterable[Digest]) -> None:
    now = time.time()
    db.executemany("UPDATE blobs SET verified_at = ? WHERE digest = ?", [(now, digest) for digest in digests])


_BUNDLES = """
    WITH bundled AS (SELECT revision FROM bundles UNION SELECT revision FROM replaced_bundles)
    SELECT coalesce(sum(b.size), 0) FROM blobs b
    WHERE b.deleting = 0 AND b.digest IN (SELECT digest FROM files WHERE revision IN bundled)
      AND NOT EXISTS (SELECT 1 FROM files f WHERE f.digest = b.digest AND f.revision NOT IN bundled)
"""


def bytes_by_state(db: sqlite3.Connection) -> dict[str, int]:
    """Held bytes that the index knows of, each blob once: ready, trash (marked for deletion), ingest (reserved or being
    written) and bundles (of blobs that nothing but bundles holds)."""
    ready, trash = db.execute(
        "SELECT coalesce(sum(CASE WHEN deleting THEN 0 ELSE size END), 0), coalesce(sum(CASE WHEN deleting THEN size END), 0)"
        " FROM blobs"
    ).fetchone()
    (ingest,) = db.execute("SELECT coalesce(sum(size), 0) FROM ingests").fetchone()
    (bundles,) = db.execute(_BUNDLES).fetchone()
    return {"ready": ready - bundles, "trash": trash, "ingest": ingest, "bundles": bundles}


def learn(db: sqlite3.Connection, facts: Iterable[Learnt]) -> None:
    """Remembers only the newest version of an object: an older one can never be asked for again."""
    now = time.time()
    db.executemany(
        "INSERT OR REPLACE INTO objects (origin, key, version, size, digest, unsafe, seen_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(f.origin, f.key, f.version, f.size, f.digest, f.unsafe, now) for f in facts],
    )


def learnt(db: sqlite3.Connection, origin: str, keys: Sequence[str]) -> dict[str, Learnt]:
    """What is known of these keys, by key."""
    known = {}
    for chunk in _chunks(list(keys)):
        marks = ",".join("?" * len(chunk))
        for key, version, size, digest, unsafe in db.execute(
            f"SELECT key, version, size, digest, unsafe FROM objects WHERE origin = ? AND key IN ({marks})", [origin, *chunk]
        ):
            known[key] = Learnt(origin, key, version, size, Digest(digest), unsafe)
    return known


def _chunks(items: list[str] | list[Digest]) -> Iterable[Sequence[str]]:
    return (items[at : at + 500] for at in range(0, len(items), 500))
