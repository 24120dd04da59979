"""Opening the index and telling its errors: what is its file's fault, what is the disk's, and what is somebody else's."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import sqlite3
from typing import Any

import pytest

from hotshelf_daemon.index import Index, Unreadable, Unwritable, connection, mounts, open_index, refuse_network_file_system
from hotshelf_shared.errors import BadConfiguration, DaemonUnavailable, HotshelfError, InsufficientSpace


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "index" / "index.db")


def opened(path: str) -> contextlib.closing[Index]:
    return contextlib.closing(open_index(path))


@pytest.mark.parametrize("spoilt", [b"no database at all" * 300, b"SQLite format 3\x00" + b"\xff" * 5_000])
def test_a_file_that_is_no_index_is_kept_and_a_new_one_made(path: str, spoilt: bytes) -> None:
    pathlib.Path(path).parent.mkdir()
    pathlib.Path(path).write_bytes(spoilt)
    with opened(path) as index:
        assert index.read(lambda db: db.execute("SELECT count(*) FROM snapshots").fetchone()[0]) == 0
    (kept,) = pathlib.Path(path).parent.glob("index.db.broken-*")
    assert kept.read_bytes() == spoilt
    with pytest.raises(Unreadable):
        Index(str(kept))


def test_a_place_where_nothing_can_be_opened_is_the_setting_s_fault(path: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadConfiguration, match="cannot be made"):
        open_index(str(tmp_path / "file" / "index.db"))
    pathlib.Path(path).mkdir(parents=True)
    with pytest.raises(BadConfiguration, match="cannot be opened"):
        open_index(path)
    assert pathlib.Path(path).is_dir(), "set aside for what is not its fault"


def test_a_reader_from_while_no_daemon_lived_keeps_its_file_and_we_go_on_with_a_copy(path: str) -> None:
    with opened(path) as index:
        asyncio.run(index.write(lambda db: db.execute("INSERT INTO pins VALUES ('x', 'revision', NULL, 1, 1.0)"), durable=True))
    with contextlib.closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM pins").fetchone() == (1,)
        with opened(path) as index:
            asyncio.run(index.write(lambda db: db.execute("DELETE FROM pins")))
            assert index.read(lambda db: db.execute("SELECT count(*) FROM pins").fetchone()[0]) == 0
        assert reader.execute("SELECT count(*) FROM pins").fetchone() == (1,)


@pytest.mark.parametrize("kind", ["nfs4", "virtiofs", "fuse.s3fs", "9p"])
def test_a_network_file_system_is_refused_by_its_name(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "file_system_of", lambda _path: kind)
    with pytest.raises(BadConfiguration, match=kind) as caught:
        refuse_network_file_system("/somewhere/index.db")
    assert "index.path" in caught.value.hint


def test_the_file_system_of_a_path_is_that_of_the_nearest_mount() -> None:
    assert mounts.file_system_of("/proc/self") == "proc"
    assert mounts.file_system_of("/") not in ("", "proc")


def failing(code: int, kind: type[sqlite3.Error] = sqlite3.OperationalError) -> Any:
    def change(_db: sqlite3.Connection) -> None:
        error = kind("injected")
        error.sqlite_errorcode = code
        raise error

    return change


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (sqlite3.SQLITE_FULL, InsufficientSpace),
        (sqlite3.SQLITE_IOERR_WRITE, InsufficientSpace),
        (sqlite3.SQLITE_READONLY, Unwritable),
        (sqlite3.SQLITE_BUSY, Unwritable),
        (sqlite3.SQLITE_IOERR, Unwritable),
    ],
)
def test_an_error_of_the_disk_is_told_and_the_index_goes_on(path: str, code: int, told: type[HotshelfError]) -> None:
    with opened(path) as index:
        ways = (
            lambda: asyncio.run(index.write(failing(code))),
            lambda: asyncio.run(index.write_brief(failing(code))),
            lambda: asyncio.run(index.look(failing(code))),
            lambda: index.read(failing(code)),
        )
        for attempt in ways:
            with pytest.raises(told) as caught:
                attempt()
            assert caught.value.hint
        assert not index.is_unreadable
        assert index.write_now(lambda db: db.execute("SELECT 1").fetchone()) == (1,)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT | 1 << 8])
def test_a_broken_file_is_told_once_to_whoever_rebuilds_it_and_to_callers_as_a_moment_to_wait(path: str, code: int) -> None:
    with opened(path) as index:
        told: list[bool] = []
        index.on_unreadable = lambda: told.append(index.is_unreadable)
        with pytest.raises(DaemonUnavailable) as caught:
            index.read(failing(code, sqlite3.DatabaseError))
        assert told == [True]
        assert caught.value.retryable
        assert caught.value.retry_after_s


def test_a_mistake_in_sql_stays_a_defect(path: str) -> None:
    with opened(path) as index:
        with pytest.raises(sqlite3.IntegrityError):
            index.write_now(
                lambda db: [db.execute("INSERT INTO pins VALUES ('x', 'revision', NULL, 1, 1.0)") for _ in range(2)]
            )
        assert index.read(lambda db: db.execute("SELECT count(*) FROM pins").fetchone()[0]) == 0
        with pytest.raises(sqlite3.OperationalError):
            index.read(lambda db: db.execute("SELECT nonsense"))


def test_who_writes_when_the_daemon_is_gone_is_told_so(path: str) -> None:
    index = open_index(path)
    index.close()
    with pytest.raises(DaemonUnavailable, match="stopping"):
        asyncio.run(index.write(lambda db: db.execute("SELECT 1")))


def test_the_log_is_brought_into_the_file_when_it_has_grown(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WAL_KEPT_BYTES", 0)
    with opened(path) as index:
        asyncio.run(index.write_brief(lambda db: db.execute("INSERT INTO pins VALUES ('x', 'revision', NULL, 1, 1.0)")))
        before = pathlib.Path(path).stat().st_size
        assert index.wal_bytes() > 0
        asyncio.run(index.checkpoint())
        assert pathlib.Path(path).stat().st_size > before
    assert index.wal_bytes() == 0
