"""The schema that the first two migrations create; whatever has changed since is in those after them. Never edited."""

from __future__ import annotations

FIRST_TABLES = """
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

FIRST_VIEWS = {
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
