"""`hotshelf db`: the index, read-only whatever is asked of it."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path

import pytest

from hotshelf.transport import Reply

from .conftest import Run
from .fakes import FakeDaemon


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "a shelf"
    (folder / "index").mkdir(parents=True)
    with sqlite3.connect(folder / "index" / "index.db") as db:
        db.execute("CREATE TABLE secrets (n)")
        db.execute("CREATE VIEW v_waste AS SELECT 'blob' AS kind, 3 AS bytes UNION ALL SELECT 'a,b', NULL")
    db.close()
    monkeypatch.setenv("HOTSHELF_STORE", str(folder))
    return folder


def test_the_uri_is_read_only_and_opens(run: Run, store: Path) -> None:
    uri = run("db", "uri").stdout.strip()
    assert uri == f"file:{str(store).replace(' ', '%20')}/index/index.db?mode=ro"
    db = sqlite3.connect(uri, uri=True)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("INSERT INTO secrets VALUES (1)")
    db.close()


def test_the_daemon_is_asked_where_it_is_when_nothing_says_so(run: Run, daemon: FakeDaemon) -> None:
    daemon.looks["GET", "/v1/status"] = lambda _: Reply({"index": "/local/index.db"})
    assert run("db", "uri").stdout == "file:/local/index.db?mode=ro\n"


def test_a_query_is_a_table_or_rows(run: Run, store: Path) -> None:
    select = "SELECT kind, bytes FROM v_waste"
    assert run("db", "query", select).stdout.splitlines() == ["KIND  BYTES", "blob      3", "a,b"]
    assert run("db", "query", select, "--format", "quiet").stdout == "blob\t3\na,b\t\n"
    assert json.loads(run("db", "query", select, "--format", "json").stdout)[0] == {"kind": "blob", "bytes": 3}


@pytest.mark.parametrize("sql", ["INSERT INTO secrets VALUES (1)", "SELEC 1", "SELECT 1; SELECT 2", "SELECT ?"])
def test_anything_but_one_select_is_refused(run: Run, store: Path, sql: str) -> None:
    assert run("db", "query", sql).exit_code == 2


def test_a_view_is_exported(run: Run, store: Path) -> None:
    rows = list(csv.reader(io.StringIO(run("db", "export", "v_waste", "--as", "csv").stdout)))
    assert rows == [["kind", "bytes"], ["blob", "3"], ["a,b", ""]]
    assert json.loads(run("db", "export", "v_waste").stdout)[1] == {"kind": "a,b", "bytes": None}


def test_only_views_are_exported(run: Run, store: Path) -> None:
    result = run("db", "export", "v_wast")
    assert (result.exit_code, "v_waste" in result.stderr) == (3, True)
    assert run("db", "export", "secrets").exit_code == 3


def test_no_index_is_not_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSHELF_STORE", "/nowhere")
    result = run("db", "query", "SELECT 1")
    assert (result.exit_code, "/nowhere" in result.stderr) == (3, True)


def test_what_is_no_index_is_said_so(run: Run, store: Path) -> None:
    (store / "index" / "index.db").write_bytes(b"not a database" * 100)
    assert run("db", "query", "SELECT 1").exit_code == 1
