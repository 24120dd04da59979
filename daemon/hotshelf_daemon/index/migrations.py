"""The index's schema, step by step: forward only, additive, never edited after a release.

Base tables are private; the `v_*` views are what operators may rely on (ARCHITECTURE.md documents their columns).
Times are seconds since the epoch, for people; order of use is decided by grant numbers, which no clock can turn back.
"""

from __future__ import annotations

import sqlite3
import time

from sqlite_utils import Database, Migrations

from hotshelf_daemon.index.schema import FIRST_TABLES, FIRST_VIEWS

migrations = Migrations("hotshelf")


@migrations()
def m001_create_the_index(db: Database) -> None:
    for statement in FIRST_TABLES.split(";\n\n"):
        db.execute(statement)
    # Clients remember the largest grant they have seen: a rebuilt index must not begin again below it.
    db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('leases', ?)", [int(time.time() * 1000)])


@migrations()
def m002_create_the_views(db: Database) -> None:
    for name, select in FIRST_VIEWS.items():
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
