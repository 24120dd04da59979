"""Rows of snapshots, the resolutions that become them, and the refs that name them."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from hotshelf_daemon.states import SnapshotEvent, SnapshotState, next_snapshot_state
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.manifest import FileEntry, Manifest
from hotshelf_shared.wire import Skipped


@dataclass(frozen=True, slots=True)
class RefRow:
    """A mutable name: what the wish `wish` (a digest of source, patterns and policy) stands for now.

    `listing` is the fingerprint of the origin's listing it was made from: equal again means nothing changed.
    `signed_by` is the id of the key that vouched for it; None when nobody was asked to. It stands in the index only: a record
    on the volume may be somebody else's writing, and vouches for nothing. `release` is the revision of the published manifest
    that it was taken from, which has every file. `before` is what the ref said at `previous`, with nothing before that; None
    for an earlier version's ref. `checked_at` is when its origin was last asked, 0 for now; it is not recorded either.
    """

    wish: str
    source: str
    allow: tuple[str, ...] | None
    ignore: tuple[str, ...]
    revision: Revision
    listing: str
    skipped: tuple[Skipped, ...]
    kind: str
    previous: Revision | None = None
    flipped_at: float = 0.0
    signed_by: str | None = None
    release: Revision | None = None
    commit: str | None = None
    before: RefRow | None = None
    checked_at: float = 0.0

    @property
    def alone(self) -> RefRow:
        """Without what was before it."""
        return replace(self, previous=None, before=None)

    @property
    def recorded(self) -> RefRow:
        """As `parse` reads it from its record."""
        before = None if self.before is None else self.before.recorded
        return replace(self, signed_by=None, checked_at=0.0, before=before)

    def turned_back(self, now: float) -> RefRow:
        """Where it was before, and back from there to here. For a ref that has a `previous`."""
        assert self.previous is not None
        before = self.before or replace(
            self.alone, revision=self.previous, listing="", skipped=(), signed_by=None, release=None, commit=None
        )
        return replace(
            before,
            previous=self.revision,
            before=replace(self.alone, checked_at=0.0),
            flipped_at=now,
            checked_at=self.checked_at,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "wish": self.wish,
            "source": self.source,
            "allow_patterns": self.allow,
            "ignore_patterns": self.ignore,
            "revision": self.revision,
            "previous": self.previous,
            "listing": self.listing,
            "skipped": [[s.path, s.reason] for s in self.skipped],
            "kind": self.kind,
            "flipped_at": self.flipped_at,
            "release": self.release,
            "commit": self.commit,
            "before": None if self.before is None else self.before.to_json(),
        }

    @classmethod
    def parse(cls, body: dict[str, Any]) -> RefRow:
        """From `to_json`. Raises KeyError, TypeError or InvalidRequest on anything else."""
        allow = body["allow_patterns"]
        return cls(
            wish=str(body["wish"]),
            source=str(body["source"]),
            allow=None if allow is None else tuple(str(glob) for glob in allow),
            ignore=tuple(str(glob) for glob in body["ignore_patterns"]),
            revision=Revision.parse(body["revision"]),
            listing=str(body["listing"]),
            skipped=tuple(Skipped(str(path), str(reason)) for path, reason in body["skipped"]),
            kind=str(body["kind"]),
            previous=Revision.parse(body["previous"]) if body["previous"] else None,
            flipped_at=float(body["flipped_at"]),
            release=Revision.parse(release) if (release := body.get("release")) else None,
            commit=str(commit) if (commit := body.get("commit")) else None,
            before=cls.parse({**before, "before": None}).alone if (before := body.get("before")) else None,
        )


_REF = (
    "wish, source, allow_patterns, ignore_patterns, revision, listing, skipped, kind, previous, flipped_at, signed_by, release,"
    " before, commit_id, checked_at"
)


def _ref(row: Any) -> RefRow:
    wish, source, allow, ignore, revision, listing, skipped, kind, previous, flipped_at, signed_by, *rest = row
    release, before, commit, checked_at = rest
    return RefRow(
        wish=wish,
        source=source,
        allow=None if allow is None else tuple(json.loads(allow)),
        ignore=tuple(json.loads(ignore)),
        revision=Revision(revision),
        listing=listing,
        skipped=tuple(Skipped(path, reason) for path, reason in json.loads(skipped)),
        kind=kind,
        previous=Revision(previous) if previous else None,
        flipped_at=flipped_at,
        signed_by=signed_by,
        release=Revision(release) if release else None,
        before=_before(before) if before else None,
        commit=commit,
        checked_at=checked_at,
    )


def _before(text: str) -> RefRow:
    body = json.loads(text)
    return replace(RefRow.parse(body), signed_by=body["signed_by"])


def ref(db: sqlite3.Connection, wish: str) -> RefRow | None:
    found = db.execute(f"SELECT {_REF} FROM refs WHERE wish = ?", (wish,)).fetchone()
    return _ref(found) if found else None


def ready_ref(db: sqlite3.Connection, wish: str) -> RefRow | None:
    """The ref of a wish whose snapshot is ready: what a hit is."""
    query = f"SELECT {_REF} FROM refs WHERE wish = ? AND revision IN (SELECT revision FROM snapshots WHERE state = 'ready')"
    found = db.execute(query, (wish,)).fetchone()
    return _ref(found) if found else None


def refs(db: sqlite3.Connection, source: str | None = None) -> list[RefRow]:
    where, values = ("WHERE source = ?", (source,)) if source is not None else ("", ())
    return [_ref(row) for row in db.execute(f"SELECT {_REF} FROM refs {where} ORDER BY flipped_at DESC", values)]


def flip(db: sqlite3.Connection, row: RefRow) -> None:
    body = row.to_json()
    db.execute(
        f"INSERT OR REPLACE INTO refs ({_REF}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.wish,
            row.source,
            None if row.allow is None else json.dumps(row.allow),
            json.dumps(row.ignore),
            row.revision,
            row.listing,
            json.dumps(body["skipped"]),
            row.kind,
            row.previous,
            row.flipped_at,
            row.signed_by,
            row.release,
            None if row.before is None else json.dumps({**row.before.to_json(), "signed_by": row.before.signed_by}),
            row.commit,
            row.checked_at or time.time(),
        ),
    )


def mark_checked(db: sqlite3.Connection, wish: str, release: Revision | None = None) -> None:
    """Nothing of it has changed, though another `release` may have it by now."""
    db.execute("UPDATE refs SET checked_at = ?, release = coalesce(?, release) WHERE wish = ?", (time.time(), release, wish))


def drop_refs_to(db: sqlite3.Connection, revision: Revision) -> list[str]:
    """Forgets the names of an evicted revision; the wishes dropped."""
    gone = [wish for (wish,) in db.execute("SELECT wish FROM refs WHERE revision = ?", (revision,))]
    db.execute("DELETE FROM refs WHERE revision = ?", (revision,))
    return gone


def drop_refs(db: sqlite3.Connection, wishes: Iterable[str]) -> None:
    db.executemany("DELETE FROM refs WHERE wish = ?", [(wish,) for wish in wishes])


# ---- snapshots


def state(db: sqlite3.Connection, revision: Revision) -> SnapshotState:
    found = db.execute("SELECT state FROM snapshots WHERE revision = ?", (revision,)).fetchone()
    return SnapshotState(found[0]) if found else SnapshotState.ABSENT


def is_ready(db: sqlite3.Connection, revision: Revision) -> bool:
    return state(db, revision) is SnapshotState.READY


def manifest(db: sqlite3.Connection, revision: Revision) -> Manifest:
    rows = db.execute("SELECT path, digest, size FROM files WHERE revision = ? ORDER BY path", (revision,))
    return Manifest({path: FileEntry(Digest(digest), size) for path, digest, size in rows})


def add(db: sqlite3.Connection, tree: Manifest) -> None:
    """A laid-out snapshot becomes ready: absent or damaged → preparing → ready in this one transaction."""
    current = state(db, tree.revision)
    if current is SnapshotState.READY:
        return
    ready = next_snapshot_state(next_snapshot_state(current, SnapshotEvent.PREPARE), SnapshotEvent.COMMIT)
    now = time.time()
    db.execute(
        "INSERT INTO snapshots (revision, state, bytes, files, created_at, last_used_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (revision) DO UPDATE SET state = excluded.state, reason = NULL",
        (tree.revision, ready.value, tree.size, len(tree), now, now),
    )
    db.executemany(
        "INSERT OR REPLACE INTO files (revision, path, digest, size) VALUES (?, ?, ?, ?)",
        [(tree.revision, path, entry.digest, entry.size) for path, entry in tree.items()],
    )


def damage(db: sqlite3.Connection, digests: Iterable[Digest], reason: str) -> list[Revision]:
    """Blobs were lost or found wrong: every ready snapshot that holds one of them is damaged. Those snapshots."""
    hurt: set[Revision] = set()
    for digest in digests:
        rows = db.execute("SELECT DISTINCT revision FROM files WHERE digest = ?", (digest,)).fetchall()
        hurt.update(Revision(revision) for (revision,) in rows if is_ready(db, Revision(revision)))
    for revision in hurt:
        following = next_snapshot_state(SnapshotState.READY, SnapshotEvent.DAMAGE)
        db.execute("UPDATE snapshots SET state = ?, reason = ? WHERE revision = ?", (following.value, reason, revision))
    return sorted(hurt)


def remove(db: sqlite3.Connection, revision: Revision) -> None:
    db.execute("DELETE FROM snapshots WHERE revision = ?", (revision,))
    db.execute("DELETE FROM files WHERE revision = ?", (revision,))


def touch(db: sqlite3.Connection, revision: Revision, grant: int) -> None:
    db.execute(
        "UPDATE snapshots SET last_used_at = ?, last_grant = ?, uses = uses + 1 WHERE revision = ?",
        (time.time(), grant, revision),
    )


def freshen(db: sqlite3.Connection, revision: Revision) -> None:
    """As if it had just been leased: what was built a moment ago must not be the first to go."""
    db.execute(
        "UPDATE snapshots SET last_grant = max(last_grant, (SELECT seq FROM sqlite_sequence WHERE name = 'leases'))"
        " WHERE revision = ?",
        (revision,),
    )
