"""How the index is opened, written and read: one writer connection, one writer at a time, who alone checkpoints.

SQLite up to 3.51.2 can corrupt a WAL that two connections checkpoint, so nobody else ever opens it for writing. Writes
that must survive a power cut are `durable` (synchronous=FULL); the rest need to survive only a crash of the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlite_utils import Database

from hotshelf_daemon.index.migrations import KNOWN, migrations
from hotshelf_daemon.index.mounts import refuse_network_file_system
from hotshelf_shared.errors import BadConfiguration, DaemonUnavailable, HotshelfError, InsufficientSpace

T = TypeVar("T")
log = logging.getLogger(__name__)

WAL_KEPT_BYTES = 4 << 20


#: Errors that say nothing about the file's content: it must not be set aside for them.
_NOT_ITS_FAULT = frozenset(
    (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM,
     sqlite3.SQLITE_CANTOPEN)
)  # fmt: skip


#: What SQLite says of a file that is no healthy database any more.
_BROKEN = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))


class Unwritable(HotshelfError):
    """The index cannot be written now."""


class Unreadable(Exception):
    """The index file is no healthy index of ours: set it aside and rebuild."""


class Index:
    """The open index. `write` runs a change in one transaction on the writer thread; `read` is for short looks."""

    def __init__(self, path: str) -> None:
        """Opens, checks and migrates. Raises Unreadable, or BadConfiguration naming what to set instead."""
        self.path = path
        #: Set once SQLite finds the file broken. `on_unreadable` is called then, on whichever thread found out.
        self.is_unreadable = False
        self.on_unreadable: Callable[[], object] = lambda: None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="index-writer")
        self._pragmas: dict[str, str] = {}
        self._turn = threading.Lock()
        try:
            self._writer = self._executor.submit(_open_writer, path).result()
        except BaseException:
            self._executor.shutdown()
            raise
        self._reader = _open_reader(path)

    async def write(self, change: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        """All of `change` or nothing. It survives a crash of the daemon, and when `durable` a power cut."""
        try:
            written = asyncio.get_running_loop().run_in_executor(self._executor, self._transact, change, durable)
        except RuntimeError as closed:  # a task that outlived the daemon it belongs to
            raise DaemonUnavailable("the daemon is stopping", retry_after_s=1) from closed
        return await written

    async def write_brief(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """`write` for a few rows that must only survive a crash: at once, here, when no other write is under way.

        It syncs nothing and never checkpoints, so it takes tens of microseconds where a hop to the thread takes hundreds.
        """
        if not self._turn.acquire(blocking=False):
            return await self.write(change)
        try:
            return self._transact_in_turn(change, synchronous="NORMAL", checkpoint="0")
        finally:
            self._turn.release()

    def write_now(self, change: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        """`write` for code that runs on a thread of its own."""
        return self._executor.submit(self._transact, change, durable).result()

    def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """A short look from the event loop's thread: never waits for the writer."""
        try:
            return query(self._reader)
        except sqlite3.DatabaseError as error:
            if (ours := self._as_ours(error)) is None:
                raise
            raise ours from error

    async def look(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """A look that may take long (lists): on a connection and thread of its own."""

        def run() -> T:
            with self._translated(), contextlib.closing(_open_reader(self.path)) as connection:
                return query(connection)

        return await asyncio.to_thread(run)

    async def checkpoint(self) -> None:
        """Brings the log's pages into the file when it has grown: brief writes leave that to whoever calls this."""
        if self.wal_bytes() > WAL_KEPT_BYTES:

            def run() -> None:
                with self._turn, self._translated():
                    self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)")

            await asyncio.get_running_loop().run_in_executor(self._executor, run)

    def wal_bytes(self) -> int:
        try:
            return os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return 0

    def close(self) -> None:
        """Checkpoints and leaves WAL, so that a plain read-only open works while no daemon lives. Best effort."""

        def finish() -> None:
            # A stuck reader can refuse either step: the next start copes with both journal modes.
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("PRAGMA busy_timeout=500")
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._writer.execute("PRAGMA journal_mode=DELETE")
            self._writer.close()

        self._reader.close()
        self._executor.submit(finish).result()
        self._executor.shutdown()

    def _transact(self, change: Callable[[sqlite3.Connection], T], durable: bool) -> T:
        with self._turn:
            return self._transact_in_turn(change, synchronous="FULL" if durable else "NORMAL", checkpoint="1000")

    def _transact_in_turn(self, change: Callable[[sqlite3.Connection], T], *, synchronous: str, checkpoint: str) -> T:
        with self._translated():
            self._set("synchronous", synchronous)
            self._set("wal_autocheckpoint", checkpoint)
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                result = change(self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.DatabaseError):  # what went wrong first is what is told
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                raise
            return result

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if (ours := self._as_ours(error)) is None:
                raise
            raise ours from error

    def _as_ours(self, error: sqlite3.DatabaseError) -> HotshelfError | None:
        """What a caller is told; None for a mistake of ours in SQL, which stays what it is: a defect."""
        code = getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF in _BROKEN:
            self.is_unreadable = True
            self.on_unreadable()
            return DaemonUnavailable(
                f"the index {self.path} became unreadable and is built anew from the store: {error}",
                hint="Ask again in a moment. The old file is kept beside it, for whoever wants to know why.",
                retry_after_s=1,
            )
        if not isinstance(error, sqlite3.OperationalError) or code == sqlite3.SQLITE_ERROR:
            return None
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
            return InsufficientSpace(f"the index {self.path} cannot grow: {error}", hint="Free room on its file system.")
        return Unwritable(
            f"the index {self.path} cannot be used: {error}", hint="See `hotshelf doctor`; the store may be read-only."
        )

    def _set(self, pragma: str, value: str) -> None:
        if self._pragmas.get(pragma) != value:
            self._writer.execute(f"PRAGMA {pragma}={value}")
            self._pragmas[pragma] = value


def _open_writer(path: str) -> sqlite3.Connection:
    refuse_network_file_system(path)
    connection = _connect(path)
    try:
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise Unreadable(f"{path} fails SQLite's quick_check")
        _refuse_newer(connection, path)
        if not _enter_wal(connection):
            _leave_readers_behind(connection, path)
            connection.close()
            connection = _connect(path)
            _enter_wal(connection)
        connection.execute("PRAGMA busy_timeout=5000")
        connection.execute("PRAGMA foreign_keys=OFF")
        migrations.apply(Database(connection))
    except sqlite3.DatabaseError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF in _NOT_ITS_FAULT:
            raise _unusable(path, error) from error
        raise Unreadable(f"{path}: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: str) -> sqlite3.Connection:
    try:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    except sqlite3.OperationalError as error:
        raise _unusable(path, error) from error


def _unusable(path: str, error: sqlite3.Error) -> BadConfiguration:
    return BadConfiguration(
        f"the index {path} cannot be opened: {error}", hint="Check index.path, its owner and who else uses it."
    )


def _refuse_newer(connection: sqlite3.Connection, path: str) -> None:
    """Before anything is changed."""
    applied = {migration.name for migration in migrations.applied(Database(connection))}
    if newer := sorted(applied - KNOWN):
        raise BadConfiguration(
            f"the index {path} was written by a newer hotshelf ({newer[-1]})",
            hint="Start that version again, or point index.path elsewhere: the index is rebuilt from the store.",
        )


def _enter_wal(connection: sqlite3.Connection) -> bool:
    """False while somebody reads a file that is not in WAL; a file system that cannot do WAL is content with less."""
    connection.execute("PRAGMA busy_timeout=500")
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError:
        return False
    return True


def _leave_readers_behind(connection: sqlite3.Connection, path: str) -> None:
    """A reader from while no daemon lived may sit on the file for good, and would keep us from writing a single row.

    It keeps the file it has open; ours is a copy under the same name. The store's lock makes us the only one to do this.
    """
    copy = f"{path}.copy"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(copy)
    connection.execute("VACUUM INTO ?", (copy,))
    for name in (copy, os.path.dirname(path)):
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            if name == copy:
                os.rename(copy, path)
        finally:
            os.close(fd)


def _open_reader(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False, timeout=5)
    connection.row_factory = sqlite3.Row
    return connection
