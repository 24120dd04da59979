"""What is remembered of the hub's repositories: the latest, and never more than has room."""

from __future__ import annotations

import pytest
from sqlite_utils import Database

from hotshelf_daemon.index import commits
from hotshelf_daemon.index.migrations import migrations


def test_long_listings_are_forgotten_before_they_fill_the_index_and_short_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "KEPT_CHARS", 100_000)
    database = Database(memory=True)
    migrations.apply(database)
    db = database.conn
    commits.put(db, "org/short", "main", "0" * 40, {"a.json": [1, "x", None]})
    for number in range(10):
        commits.put(db, f"org/long{number}", "main", "1" * 40, {"a": "x" * 30_000})
    kept = [number for number in range(10) if commits.find(db, f"org/long{number}", "main")]
    assert kept == [7, 8, 9]
    assert commits.find(db, "org/short", "main") == ("0" * 40, {"a.json": [1, "x", None]})
    commits.put(db, "org/huge", "main", "2" * 40, {"a": "x" * 200_000})
    assert commits.find(db, "org/huge", "main") is not None
    database.close()
