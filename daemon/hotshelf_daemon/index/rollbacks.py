"""Rows of sources that an operator has returned to an earlier revision: they stay there until they are refreshed."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any, Self

from hotshelf_shared.digest import Revision


@dataclass(frozen=True, slots=True)
class RollbackRow:
    """`source` stays at `revision`, its ref `wish`'s, whatever its origin has; its other wants at what agrees with that.

    `release` is the published manifest which has all of its files, `commit` the hub's. None of both: then what is held is all
    there is.
    """

    source: str
    wish: str
    revision: Revision
    release: Revision | None
    at: float
    uid: int
    commit: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "wish": self.wish,
            "revision": self.revision,
            "release": self.release,
            "at": self.at,
            "uid": self.uid,
            "commit": self.commit,
        }

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Self:
        """From `to_json`. Raises KeyError, TypeError, ValueError or InvalidRequest on anything else."""
        release = body["release"]
        return cls(
            source=str(body["source"]),
            wish=str(body["wish"]),
            revision=Revision.parse(body["revision"]),
            release=None if release is None else Revision.parse(release),
            at=float(body["at"]),
            uid=int(body["uid"]),
            commit=str(commit) if (commit := body.get("commit")) else None,
        )


_ROW = "source, wish, revision, release, at, uid, commit_id"


def find(db: sqlite3.Connection, source: str) -> RollbackRow | None:
    found = db.execute(f"SELECT {_ROW} FROM rollbacks WHERE source = ?", (source,)).fetchone()
    return _row(found) if found else None


def moment(db: sqlite3.Connection, source: str) -> float | None:
    """When the source was rolled back; None when it is free to follow its origin. Tells one rollback from the next."""
    found = find(db, source)
    return None if found is None else found.at


def everything(db: sqlite3.Connection) -> list[RollbackRow]:
    return [_row(row) for row in db.execute(f"SELECT {_ROW} FROM rollbacks ORDER BY source")]


def put(db: sqlite3.Connection, row: RollbackRow) -> None:
    values = (row.source, row.wish, row.revision, row.release, row.at, row.uid, row.commit)
    db.execute(f"INSERT OR REPLACE INTO rollbacks ({_ROW}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def drop(db: sqlite3.Connection, source: str) -> None:
    db.execute("DELETE FROM rollbacks WHERE source = ?", (source,))


def _row(row: Any) -> RollbackRow:
    source, wish, revision, release, at, uid, commit = row
    return RollbackRow(source, wish, Revision(revision), Revision(release) if release else None, at, uid, commit)
