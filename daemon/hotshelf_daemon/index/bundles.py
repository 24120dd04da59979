"""Rows of bound bundles: the signed document that a name stands for, who built the same, where it was published, and those
that were replaced.

A replaced bundle's row stays for as long as its snapshot does: a worker may still lease its folder.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hotshelf_daemon.index import snapshots
from hotshelf_daemon.states import SnapshotState
from hotshelf_shared.bundle import Bundle, BundleName
from hotshelf_shared.digest import Digest, Revision

_ROW = "environment_key, graph_key, digest, size, uid, created_at, hmac"


@dataclass(frozen=True, slots=True)
class BundleRow:
    """`builders` are the uids that built exactly this archive, `bundle.uid` the first; `state` is its snapshot's.

    `published` says that the operator's prefix has it.
    """

    bundle: Bundle
    state: SnapshotState
    builders: frozenset[int]
    published: bool = False

    @property
    def is_ready(self) -> bool:
        return self.state is SnapshotState.READY


def find(db: sqlite3.Connection, name: BundleName) -> BundleRow | None:
    query = f"SELECT {_ROW}, published_to FROM bundles WHERE environment_key = ? AND graph_key = ?"
    found = db.execute(query, _key(name)).fetchone()
    if found is None:
        return None
    *document, published_to = found
    bundle = _bundle(document)
    others = db.execute("SELECT uid FROM bundle_builders WHERE environment_key = ? AND graph_key = ?", _key(name))
    builders = frozenset({bundle.uid, *(int(uid) for (uid,) in others)})
    return BundleRow(bundle, snapshots.state(db, bundle.revision), builders, published_to is not None)


def rows(db: sqlite3.Connection, environment_key: str | None) -> list[BundleRow]:
    """Of one environment, or of all, by name."""
    return _rows(db, "?1 IS NULL OR environment_key = ?1 ORDER BY environment_key, graph_key", environment_key)


def unpublished(db: sqlite3.Connection, prefix: str) -> list[BundleRow]:
    """Those that are ready and have not been sent there, the oldest first."""
    return [row for row in _rows(db, "published_to IS NOT ? ORDER BY created_at", prefix) if row.is_ready]


def mark_published(db: sqlite3.Connection, row: BundleRow, prefix: str) -> None:
    """Unless the name stands for another archive by now."""
    statement = "UPDATE bundles SET published_to = ? WHERE environment_key = ? AND graph_key = ? AND digest = ?"
    db.execute(statement, (prefix, *_key(row.bundle.name), row.bundle.digest))


def everything(db: sqlite3.Connection) -> dict[BundleName, Bundle]:
    return {bundle.name: bundle for bundle in map(_bundle, db.execute(f"SELECT {_ROW} FROM bundles"))}


def replaced(db: sqlite3.Connection) -> set[tuple[BundleName, Revision]]:
    rows = db.execute("SELECT environment_key, graph_key, revision FROM replaced_bundles")
    return {(BundleName(environment_key, graph_key), Revision(revision)) for environment_key, graph_key, revision in rows}


def put(db: sqlite3.Connection, bundle: Bundle, *, published_to: str | None = None) -> None:
    """Binds the name to this bundle, whatever it was bound to before."""
    before, key = find(db, bundle.name), _key(bundle.name)
    if before is None or before.bundle.revision != bundle.revision:
        db.execute("DELETE FROM bundle_builders WHERE environment_key = ? AND graph_key = ?", key)
    if before is not None and before.bundle.revision != bundle.revision:
        db.execute("INSERT OR IGNORE INTO replaced_bundles VALUES (?, ?, ?)", (before.bundle.revision, *key))
    db.execute(
        "DELETE FROM replaced_bundles WHERE revision = ? AND environment_key = ? AND graph_key = ?", (bundle.revision, *key)
    )
    db.execute(
        f"INSERT OR REPLACE INTO bundles ({_ROW}, revision, published_to) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*key, bundle.digest, bundle.size, bundle.uid, bundle.issued, bundle.hmac, bundle.revision, published_to),
    )
    snapshots.freshen(db, bundle.revision)


def add_builder(db: sqlite3.Connection, name: BundleName, uid: int) -> None:
    """Another uid built the same archive, byte for byte."""
    db.execute("INSERT OR IGNORE INTO bundle_builders VALUES (?, ?, ?)", (*_key(name), uid))


def drop(db: sqlite3.Connection, name: BundleName) -> None:
    """Forgets what the name stands for."""
    for table in ("bundles", "bundle_builders"):
        db.execute(f"DELETE FROM {table} WHERE environment_key = ? AND graph_key = ?", _key(name))


def drop_revision(db: sqlite3.Connection, revision: Revision) -> list[BundleName]:
    """Its snapshot goes: so does every bundle that it is or was. Their names."""
    bound = [
        BundleName(*row) for row in db.execute("SELECT environment_key, graph_key FROM bundles WHERE revision = ?", (revision,))
    ]
    was = db.execute("SELECT environment_key, graph_key FROM replaced_bundles WHERE revision = ?", (revision,))
    gone = [*bound, *(BundleName(*row) for row in was)]
    for name in bound:
        drop(db, name)
    db.execute("DELETE FROM replaced_bundles WHERE revision = ?", (revision,))
    return gone


def of_revision(db: sqlite3.Connection, revision: Revision) -> list[str]:
    """The names that stand for it."""
    rows = db.execute("SELECT environment_key, graph_key FROM bundles WHERE revision = ?", (revision,))
    return sorted(str(BundleName(*row)) for row in rows)


def _rows(db: sqlite3.Connection, which: str, value: str | None) -> list[BundleRow]:
    names = db.execute(f"SELECT environment_key, graph_key FROM bundles WHERE {which}", (value,)).fetchall()
    return [row for name in names if (row := find(db, BundleName(*name))) is not None]


def _key(name: BundleName) -> tuple[str, str]:
    return name.environment_key, name.graph_key


def _bundle(row: Sequence[Any]) -> Bundle:
    environment_key, graph_key, digest, size, uid, created_at, hmac = row
    return Bundle(BundleName(environment_key, graph_key), Digest(digest), int(size), int(uid), int(created_at), hmac)
