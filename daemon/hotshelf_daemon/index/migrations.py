"""The index's schema, step by step: forward only, additive, never edited after a release.

Base tables are private; the `v_*` views are what operators may rely on (ARCHITECTURE.md documents their columns).
Times are seconds since the epoch, for people; order of use is decided by grant numbers, which no clock can turn back.
"""

from __future__ import annotations

import sqlite3
import time

from sqlite_utils import Database, Migrations

migrations = Migrations("hotshelf")


@migrations()
def m001_create_the_index(db: Database) -> None:
    for statement in _TABLES.split(";\n\n"):
        db.execute(statement)
    # Clients remember the largest grant they have seen: a rebuilt index must not begin again below it.
    db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('leases', ?)", [int(time.time() * 1000)])


@migrations()
def m002_create_the_views(db: Database) -> None:
    for name, select in _VIEWS.items():
        db.execute(f"CREATE VIEW {name} AS {select}")


@migrations()
def m003_add_pipelines_and_hand_ins(db: Database) -> None:
    """What is known of a pipeline beside its key; who else built the same; blobs that wait to be bound."""
    for statement in _M003.split(";\n\n"):
        db.execute(statement)


@migrations()
def m004_sign_bundles(db: Database) -> None:
    """The tree and the signature of a bundle; who else built the same; those whose place another has taken."""
    for statement in _M004.split(";\n\n"):
        db.execute(statement)


@migrations()
def m005_add_who_signed(db: Database) -> None:
    """The key that vouched for what a ref names. Nobody vouched for what is there already."""
    for statement in _M005.split(";\n\n"):
        db.execute(statement)


@migrations()
def m006_add_rollbacks(db: Database) -> None:
    """Sources that an operator has returned to an earlier revision; what each ref was before, so that it can."""
    for statement in _M006.split(";\n\n"):
        db.execute(statement)


@migrations()
def m007_add_where_bundles_are_published(db: Database) -> None:
    """As of pipelines: nothing that is there has been."""
    for statement in _M007.split(";\n\n"):
        db.execute(statement)


_TABLES = """
CREATE TABLE blobs (
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL, committed_at REAL NOT NULL, verified_at REAL NOT NULL,
    deleting INTEGER NOT NULL DEFAULT 0, unsafe TEXT
) WITHOUT ROWID;

CREATE TABLE snapshots (
    revision TEXT PRIMARY KEY, state TEXT NOT NULL, bytes INTEGER NOT NULL, files INTEGER NOT NULL,
    created_at REAL NOT NULL, last_used_at REAL NOT NULL, last_grant INTEGER NOT NULL DEFAULT 0,
    uses INTEGER NOT NULL DEFAULT 0, reason TEXT
) WITHOUT ROWID;

CREATE TABLE files (
    revision TEXT NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (revision, path)
) WITHOUT ROWID;

CREATE INDEX files_by_digest ON files (digest);

CREATE TABLE refs (
    wish TEXT PRIMARY KEY, source TEXT NOT NULL, allow_patterns TEXT, ignore_patterns TEXT NOT NULL,
    revision TEXT NOT NULL, previous TEXT, listing TEXT NOT NULL, skipped TEXT NOT NULL, kind TEXT NOT NULL,
    flipped_at REAL NOT NULL, checked_at REAL NOT NULL
) WITHOUT ROWID;

CREATE INDEX refs_by_revision ON refs (revision);

CREATE INDEX refs_by_source ON refs (source);

CREATE TABLE resolutions (
    id TEXT PRIMARY KEY, source TEXT NOT NULL, state TEXT NOT NULL, bytes INTEGER NOT NULL, files INTEGER NOT NULL,
    revision TEXT, opened_at REAL NOT NULL, error TEXT
) WITHOUT ROWID;

CREATE TABLE wanted_blobs (
    resolution TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (resolution, digest)
) WITHOUT ROWID;

CREATE INDEX wanted_blobs_by_digest ON wanted_blobs (digest);

CREATE TABLE objects (
    origin TEXT NOT NULL, key TEXT NOT NULL, version TEXT NOT NULL, size INTEGER NOT NULL, digest TEXT NOT NULL,
    unsafe TEXT, seen_at REAL NOT NULL, PRIMARY KEY (origin, key)
) WITHOUT ROWID;

CREATE TABLE ingests (
    id TEXT PRIMARY KEY, origin TEXT NOT NULL, key TEXT NOT NULL, version TEXT NOT NULL, size INTEGER NOT NULL,
    expected TEXT, state TEXT NOT NULL, opened_at REAL NOT NULL, touched_at REAL NOT NULL,
    UNIQUE (origin, key, version)
) WITHOUT ROWID;

CREATE TABLE segments (
    ingest TEXT NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, crc64nvme TEXT NOT NULL,
    PRIMARY KEY (ingest, start)
) WITHOUT ROWID;

CREATE TABLE leases (
    grant_number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, uid INTEGER NOT NULL, pid INTEGER NOT NULL,
    client TEXT, source TEXT NOT NULL, resolution TEXT, revision TEXT, ttl_s REAL NOT NULL, granted_at REAL NOT NULL,
    renewed_at REAL NOT NULL
);

CREATE INDEX leases_by_revision ON leases (revision);

CREATE TABLE pins (
    target TEXT PRIMARY KEY, kind TEXT NOT NULL, wish TEXT, uid INTEGER NOT NULL, created_at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE requests (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, source TEXT NOT NULL, revision TEXT, outcome TEXT NOT NULL,
    duration_s REAL NOT NULL, uid INTEGER NOT NULL, error TEXT
);

CREATE TABLE evictions (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, revision TEXT, bytes INTEGER NOT NULL, reason TEXT NOT NULL
);

CREATE TABLE pipelines (
    key TEXT PRIMARY KEY, revision TEXT NOT NULL, recipe TEXT NOT NULL, uid INTEGER NOT NULL, created_at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE bundles (
    environment_key TEXT NOT NULL, graph_key TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
    uid INTEGER NOT NULL, created_at REAL NOT NULL, PRIMARY KEY (environment_key, graph_key)
) WITHOUT ROWID;

CREATE TABLE events (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL, detail TEXT NOT NULL
)"""

_VIEWS = {
    "v_blobs": """
        SELECT b.digest, b.size, CASE WHEN b.deleting THEN 'deleting' ELSE 'ready' END AS state,
               datetime(b.committed_at, 'unixepoch') AS committed_at, datetime(b.verified_at, 'unixepoch') AS verified_at,
               (SELECT count(DISTINCT f.revision) FROM files f WHERE f.digest = b.digest) AS snapshots
        FROM blobs b""",
    "v_files": "SELECT revision, path, digest, size FROM files",
    "v_pins": """
        SELECT p.target, p.kind, p.uid, datetime(p.created_at, 'unixepoch') AS created_at,
               CASE p.kind WHEN 'revision' THEN p.target
                    ELSE (SELECT r.revision FROM refs r WHERE r.wish = p.wish) END AS revision
        FROM pins p""",
    "v_refs": """
        SELECT wish, source, allow_patterns, ignore_patterns, revision, previous, kind,
               datetime(flipped_at, 'unixepoch') AS flipped_at, datetime(checked_at, 'unixepoch') AS checked_at
        FROM refs""",
    "v_leases": """
        SELECT id, grant_number, uid, pid, client, source, revision, resolution, ttl_s,
               datetime(granted_at, 'unixepoch') AS granted_at, datetime(renewed_at, 'unixepoch') AS renewed_at
        FROM leases""",
    "v_snapshots": """
        SELECT s.revision, s.state, s.bytes, s.files, s.uses, s.reason,
               datetime(s.created_at, 'unixepoch') AS created_at, datetime(s.last_used_at, 'unixepoch') AS last_used_at,
               'snapshots/' || substr(s.revision, 8) AS path,
               (SELECT count(*) FROM leases l WHERE l.revision = s.revision) AS leases,
               EXISTS (SELECT 1 FROM v_pins p WHERE p.revision = s.revision) AS pinned,
               (SELECT group_concat(r.source, ' ') FROM refs r WHERE r.revision = s.revision) AS sources
        FROM snapshots s""",
    "v_transfers": """
        SELECT i.id, i.origin, i.key, i.size, i.expected, i.state, datetime(i.opened_at, 'unixepoch') AS opened_at,
               coalesce((SELECT sum(s.stop - s.start) FROM segments s WHERE s.ingest = i.id), 0) AS bytes_done
        FROM ingests i""",
    "v_requests": "SELECT id, datetime(at, 'unixepoch') AS at, source, revision, outcome, duration_s, uid, error FROM requests",
    "v_evictions": "SELECT id, datetime(at, 'unixepoch') AS at, revision, bytes, reason FROM evictions",
    "v_pipelines": "SELECT key, revision, recipe, uid, datetime(created_at, 'unixepoch') AS created_at FROM pipelines",
    "v_bundles": """
        SELECT environment_key, graph_key, digest, size, uid, datetime(created_at, 'unixepoch') AS created_at FROM bundles""",
    "v_events": "SELECT id, datetime(at, 'unixepoch') AS at, kind, subject, detail FROM events",
    "v_waste": """
        SELECT 'unreferenced blob' AS kind, b.digest AS subject, b.size AS bytes FROM blobs b
        WHERE b.deleting = 0 AND NOT EXISTS (SELECT 1 FROM files f WHERE f.digest = b.digest)
        UNION ALL
        SELECT 'interrupted ingest', i.id, i.size FROM ingests i WHERE i.state = 'reserved'
        UNION ALL
        SELECT 'never used again', s.revision, s.bytes FROM snapshots s WHERE s.uses <= 1""",
}


_M003 = """
ALTER TABLE pipelines ADD COLUMN build TEXT NOT NULL DEFAULT '{}';

ALTER TABLE pipelines ADD COLUMN hotshelf TEXT NOT NULL DEFAULT '';

ALTER TABLE pipelines ADD COLUMN published_to TEXT;

CREATE INDEX pipelines_by_revision ON pipelines (revision);

CREATE TABLE pipeline_builders (
    key TEXT NOT NULL, uid INTEGER NOT NULL, PRIMARY KEY (key, uid)
) WITHOUT ROWID;

CREATE TABLE handed_in (
    digest TEXT NOT NULL, uid INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (digest, uid)
) WITHOUT ROWID;

DROP VIEW v_pipelines;

CREATE VIEW v_pipelines AS
    SELECT key, revision, recipe, uid, datetime(created_at, 'unixepoch') AS created_at, build, published_to FROM pipelines;

DROP VIEW v_waste;

CREATE VIEW v_waste AS
    SELECT 'unreferenced blob' AS kind, b.digest AS subject, b.size AS bytes FROM blobs b
    WHERE b.deleting = 0 AND NOT EXISTS (SELECT 1 FROM files f WHERE f.digest = b.digest)
      AND NOT EXISTS (SELECT 1 FROM handed_in h WHERE h.digest = b.digest)
    UNION ALL
    SELECT 'interrupted ingest', i.id, i.size FROM ingests i WHERE i.state = 'reserved'
    UNION ALL
    SELECT 'never used again', s.revision, s.bytes FROM snapshots s WHERE s.uses <= 1
"""

_M004 = """
ALTER TABLE bundles ADD COLUMN revision TEXT NOT NULL DEFAULT '';

ALTER TABLE bundles ADD COLUMN hmac TEXT NOT NULL DEFAULT '';

CREATE INDEX bundles_by_revision ON bundles (revision);

CREATE TABLE bundle_builders (
    environment_key TEXT NOT NULL, graph_key TEXT NOT NULL, uid INTEGER NOT NULL,
    PRIMARY KEY (environment_key, graph_key, uid)
) WITHOUT ROWID;

CREATE TABLE replaced_bundles (
    revision TEXT NOT NULL, environment_key TEXT NOT NULL, graph_key TEXT NOT NULL,
    PRIMARY KEY (revision, environment_key, graph_key)
) WITHOUT ROWID
"""


_M005 = """
ALTER TABLE refs ADD COLUMN signed_by TEXT;

DROP VIEW v_refs;

CREATE VIEW v_refs AS
    SELECT wish, source, allow_patterns, ignore_patterns, revision, previous, kind,
           datetime(flipped_at, 'unixepoch') AS flipped_at, datetime(checked_at, 'unixepoch') AS checked_at, signed_by
    FROM refs
"""


_M006 = """
ALTER TABLE refs ADD COLUMN release TEXT;

ALTER TABLE refs ADD COLUMN before TEXT;

ALTER TABLE refs ADD COLUMN commit_id TEXT;

CREATE INDEX refs_by_commit ON refs (commit_id);

CREATE TABLE commits (
    repository TEXT NOT NULL, revision TEXT NOT NULL, commit_id TEXT NOT NULL, files TEXT NOT NULL, seen_at REAL NOT NULL,
    PRIMARY KEY (repository, revision)
) WITHOUT ROWID;

CREATE TABLE rollbacks (
    source TEXT PRIMARY KEY, wish TEXT NOT NULL, revision TEXT NOT NULL, release TEXT, at REAL NOT NULL, uid INTEGER NOT NULL,
    commit_id TEXT
) WITHOUT ROWID;

DROP VIEW v_refs;

CREATE VIEW v_refs AS
    SELECT r.wish, r.source, r.allow_patterns, r.ignore_patterns, r.revision, r.previous, r.kind,
           datetime(r.flipped_at, 'unixepoch') AS flipped_at, datetime(r.checked_at, 'unixepoch') AS checked_at, r.signed_by,
           r.release, r.commit_id, datetime(b.at, 'unixepoch') AS rolled_back_at
    FROM refs r LEFT JOIN rollbacks b ON b.source = r.source
"""


_M007 = """
ALTER TABLE bundles ADD COLUMN published_to TEXT;

DROP VIEW v_bundles;

CREATE VIEW v_bundles AS
    SELECT environment_key, graph_key, digest, size, uid, datetime(created_at, 'unixepoch') AS created_at, published_to
    FROM bundles
"""


#: Every migration this version knows; an index that has had any other is a newer version's.
KNOWN = frozenset(migration.name for migration in migrations.pending(Database(sqlite3.connect(":memory:"))))
