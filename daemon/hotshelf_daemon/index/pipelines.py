"""Rows of bound pipelines: which tree a key stands for, who built it, and where it was published."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hotshelf_daemon.index import snapshots
from hotshelf_daemon.states import SnapshotState
from hotshelf_shared.built import Built
from hotshelf_shared.digest import Revision
from hotshelf_shared.recipe import Recipe


@dataclass(frozen=True, slots=True)
class PipelineRow:
    """`builders` are the uids that built exactly this tree, `uid` the first of them; `state` is its snapshot's.

    `published` says that the operator's prefix has it.
    """

    key: str
    revision: Revision
    uid: int
    state: SnapshotState
    builders: frozenset[int]
    published: bool = False

    @property
    def is_ready(self) -> bool:
        return self.state is SnapshotState.READY


def find(db: sqlite3.Connection, key: str) -> PipelineRow | None:
    found = db.execute("SELECT revision, uid, published_to FROM pipelines WHERE key = ?", (key,)).fetchone()
    if found is None:
        return None
    revision, uid, published = Revision(found[0]), int(found[1]), found[2] is not None
    others = {int(other) for (other,) in db.execute("SELECT uid FROM pipeline_builders WHERE key = ?", (key,))}
    return PipelineRow(key, revision, uid, snapshots.state(db, revision), frozenset({uid, *others}), published)


def built(db: sqlite3.Connection, key: str) -> Built | None:
    """All that was recorded of it, its files included."""
    query = "SELECT revision, recipe, uid, created_at, hotshelf, build FROM pipelines WHERE key = ?"
    found = db.execute(query, (key,)).fetchone()
    if found is None:
        return None
    revision, recipe, uid, created_at, hotshelf, build = found
    return Built(
        recipe=Recipe.parse(json.loads(recipe)),
        tree=snapshots.manifest(db, Revision(revision)),
        uid=int(uid),
        created_at=float(created_at),
        hotshelf=hotshelf,
        build=json.loads(build),
    )


def shown(db: sqlite3.Connection, key: str) -> dict[str, Any]:
    """A bound pipeline as `GET /v1/pipelines/{key}` tells it."""
    row = db.execute(
        "SELECT p.key, p.revision, p.recipe, p.uid, p.created_at, p.build, s.files, s.bytes"
        " FROM v_pipelines p JOIN snapshots s ON s.revision = p.revision WHERE p.key = ?",
        (key,),
    ).fetchone()
    body = dict(zip(("key", "revision", "recipe", "uid", "created_at", "build", "files", "bytes"), row, strict=True))
    return {**body, "recipe": json.loads(body["recipe"]), "build": json.loads(body["build"])}


def keys(db: sqlite3.Connection) -> list[str]:
    return [key for (key,) in db.execute("SELECT key FROM pipelines ORDER BY key")]


def put(db: sqlite3.Connection, one: Built, *, published_to: str | None = None) -> list[str]:
    """Binds the key to this tree, whatever it was bound to before. The wishes of refs that named another tree, dropped."""
    before = find(db, one.key)
    stale = [row.wish for row in _refs(db, one.key) if row.revision != one.revision]
    snapshots.drop_refs(db, stale)
    db.execute(
        "INSERT OR REPLACE INTO pipelines (key, revision, recipe, uid, created_at, hotshelf, build, published_to)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            one.key,
            one.revision,
            one.recipe.canonical().decode(),
            one.uid,
            one.created_at,
            one.hotshelf,
            json.dumps(one.build, sort_keys=True),
            published_to,
        ),
    )
    if before is None or before.revision != one.revision:
        db.execute("DELETE FROM pipeline_builders WHERE key = ?", (one.key,))
    else:
        add_builder(db, one.key, before.uid)  # who built the same tree before goes on being one who did
    snapshots.freshen(db, one.revision)
    return stale


def add_builder(db: sqlite3.Connection, key: str, uid: int) -> None:
    """Another uid built the same tree, digest for digest."""
    db.execute("INSERT OR IGNORE INTO pipeline_builders (key, uid) VALUES (?, ?)", (key, uid))


def drop(db: sqlite3.Connection, dropped: Iterable[str]) -> list[str]:
    """Forgets keys, and whatever ref names them. Those wishes."""
    wishes = []
    for key in dropped:
        wishes += [row.wish for row in _refs(db, key)]
        db.execute("DELETE FROM pipelines WHERE key = ?", (key,))
        db.execute("DELETE FROM pipeline_builders WHERE key = ?", (key,))
    snapshots.drop_refs(db, wishes)
    return wishes


def of_revision(db: sqlite3.Connection, revision: Revision) -> list[str]:
    """The keys that stand for it."""
    return [key for (key,) in db.execute("SELECT key FROM pipelines WHERE revision = ?", (revision,))]


def unpublished(db: sqlite3.Connection, prefix: str) -> list[PipelineRow]:
    """Those that are ready and have not been sent there, the oldest first."""
    query = "SELECT key FROM pipelines WHERE published_to IS NOT ? ORDER BY created_at"
    rows = [find(db, key) for (key,) in db.execute(query, (prefix,)).fetchall()]
    return [row for row in rows if row is not None and row.is_ready]


def mark_published(db: sqlite3.Connection, row: PipelineRow, prefix: str) -> None:
    db.execute("UPDATE pipelines SET published_to = ? WHERE key = ? AND revision = ?", (prefix, row.key, row.revision))


def _refs(db: sqlite3.Connection, key: str) -> list[snapshots.RefRow]:
    """Of the key, and of the key with a revision after an @, the character before A."""
    source = f"pipeline:{key}"
    pinned = db.execute("SELECT source FROM refs WHERE source >= ? AND source < ?", (f"{source}@", f"{source}A")).fetchall()
    return [row for text in {source, *(text for (text,) in pinned)} for row in snapshots.refs(db, text)]
