"""Rows of commits of the hub's repositories: what each holds, so that it is known with the hub away."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from typing import Any

from hotshelf_shared.digest import Digest, Revision

#: Rows that are kept: a commit and the branches that lead to it have one each.
KEPT = 1_000
#: Those that are longer than all may be on average are kept up to so many characters, the latest at any rate.
KEPT_CHARS = 64 << 20


def put(db: sqlite3.Connection, repository: str, revision: str, commit: str, files: Mapping[str, Any]) -> None:
    """What `revision` of ORG/NAME is now: the commit, and what it holds by path, in JSON's terms."""
    text = json.dumps(files)
    row = (repository, revision, commit, text, time.time())
    db.execute("INSERT OR REPLACE INTO commits (repository, revision, commit_id, files, seen_at) VALUES (?, ?, ?, ?, ?)", row)
    db.execute(
        "DELETE FROM commits WHERE (repository, revision) NOT IN"
        " (SELECT repository, revision FROM commits ORDER BY seen_at DESC LIMIT ?)",
        (KEPT,),
    )
    if len(text) > (average := KEPT_CHARS // KEPT):
        db.execute(
            "DELETE FROM commits WHERE (repository, revision) IN (SELECT repository, revision FROM"
            " (SELECT repository, revision, row_number() OVER latest AS place, sum(length(files)) OVER latest AS chars"
            " FROM commits WHERE length(files) > ? WINDOW latest AS (ORDER BY seen_at DESC ROWS UNBOUNDED PRECEDING))"
            " WHERE place > 2 AND chars > ?)",
            (average, KEPT_CHARS),
        )


def find(db: sqlite3.Connection, repository: str, revision: str) -> tuple[str, dict[str, Any]] | None:
    """The commit, and its files."""
    query = "SELECT commit_id, files FROM commits WHERE repository = ? AND revision = ?"
    found = db.execute(query, (repository, revision)).fetchone()
    return (found[0], json.loads(found[1])) if found else None


def held(db: sqlite3.Connection, source: str, commit: str, path: str) -> tuple[Digest, Revision] | None:
    """The content of a file of this source at that commit, and the ready snapshot that has it."""
    found = db.execute(
        "SELECT f.digest, r.revision FROM refs r JOIN snapshots s ON s.revision = r.revision AND s.state = 'ready'"
        " JOIN files f ON f.revision = r.revision AND f.path = ?"
        " WHERE r.commit_id = ? AND (r.source = ? OR substr(r.source, 1, length(?) + 1) = ? || '@') LIMIT 1",
        (path, commit, source, source, source),
    ).fetchone()
    return (Digest(found[0]), Revision(found[1])) if found else None
