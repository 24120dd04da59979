"""Rows of blobs that workers handed in and have yet to bind: roots, each for its uid's time."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable

from hotshelf_shared.digest import Digest


def hold(db: sqlite3.Connection, digest: Digest, uid: int) -> int | None:
    """Makes a held blob a root for this uid; its size. None when it is not held, or executes and so cannot be bound."""
    found = db.execute("SELECT size FROM blobs WHERE digest = ? AND deleting = 0 AND unsafe IS NULL", (digest,)).fetchone()
    if found is None:
        return None
    db.execute("INSERT OR REPLACE INTO handed_in (digest, uid, at) VALUES (?, ?, ?)", (digest, uid, time.time()))
    return int(found[0])


def let_go(db: sqlite3.Connection, roots: Iterable[tuple[Digest, int]]) -> None:
    db.executemany("DELETE FROM handed_in WHERE digest = ? AND uid = ?", list(roots))


def everything(db: sqlite3.Connection) -> list[tuple[Digest, int]]:
    return [(Digest(digest), int(uid)) for digest, uid in db.execute("SELECT digest, uid FROM handed_in")]


def digests(db: sqlite3.Connection) -> set[Digest]:
    return {Digest(digest) for (digest,) in db.execute("SELECT DISTINCT digest FROM handed_in")}


def is_held(db: sqlite3.Connection, digest: Digest) -> bool:
    return bool(db.execute("SELECT EXISTS (SELECT 1 FROM handed_in WHERE digest = ?)", (digest,)).fetchone()[0])
