"""What a caller, an operator or a burglar can see of a daemon: answers, rows and files. For assertions."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sqlite3
from typing import Any

from hotshelf_shared import errors
from hotshelf_shared.wire import PROBLEM_JSON
from tests import objects
from tests.daemon_process import Daemon, Reply


def index_of(daemon: Daemon) -> pathlib.Path:
    return daemon.store / "index" / "index.db"


def rows(daemon: Daemon, query: str, *values: object) -> list[dict[str, Any]]:
    """What an operator's read-only query answers."""
    with contextlib.closing(sqlite3.connect(f"file:{index_of(daemon)}?mode=ro", uri=True, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query, values)]


def value(daemon: Daemon, query: str, *values: object) -> Any:
    """The first column of the first row."""
    return next(iter(rows(daemon, query, *values)[0].values()))


def granted(reply: Reply) -> Any:
    """The body of an answer that must be a 200."""
    assert reply.status == 200, reply.body
    return reply.body


def refused(reply: Reply, code: str) -> dict[str, Any]:
    """The problem that an answer must be: of that code, with the code's own status, saying what to do."""
    assert isinstance(reply.body, dict), reply
    assert reply.body.get("code") == code, reply.body
    assert reply.status == reply.body["status"] == errors.BY_CODE[code].status
    assert reply.headers["content-type"].partition(";")[0] == PROBLEM_JSON
    assert reply.body["hint"]
    assert reply.body["detail"]
    assert isinstance(reply.body["retryable"], bool)
    return reply.body


def tree_of(daemon: Daemon, lease: dict[str, Any]) -> objects.Tree:
    """The files that a lease's path leads to."""
    return objects.read(daemon.store / lease["path"])


def names_in(daemon: Daemon, folder: str) -> list[str]:
    return sorted(os.listdir(daemon.store / folder))


def blobs_on_disk(daemon: Daemon) -> dict[str, int]:
    """Digest → size of every file below blobs/."""
    found = (daemon.store / "blobs" / "sha256").glob("??/*")
    return {f"sha256:{path.name}": path.stat().st_size for path in found}


def assert_nothing_visible(daemon: Daemon) -> None:
    """No snapshot, no ref, no lease; neither in the index nor on the disk."""
    for view in ("v_snapshots", "v_refs", "v_leases"):
        assert rows(daemon, f"SELECT * FROM {view}") == []
    for folder in ("snapshots", "refs", "manifests", "trash"):
        assert names_in(daemon, folder) == []


def assert_index_and_disk_agree(daemon: Daemon) -> None:
    """Every ready blob is a file of its size whose bytes hash to its name, and there is no other file."""
    listed = {row["digest"]: row["size"] for row in rows(daemon, "SELECT digest, size FROM v_blobs WHERE state = 'ready'")}
    assert blobs_on_disk(daemon) == listed
    for digest in listed:
        name = digest.removeprefix("sha256:")
        data = (daemon.store / "blobs" / "sha256" / name[:2] / name).read_bytes()
        assert objects.Digest.of(data) == digest
