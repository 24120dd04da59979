"""Acquires model after model from the daemon on $ROOT, and writes down in $ACK what was acknowledged, until it is cut off.

With `--without-sync` every sync is a no-op, SQLite's too: the negative control, whose check must fail.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import pathlib
import sqlite3
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from tests import objects
from tests.faults.inside import Inside, run_inside

WORKERS = 3
#: Every so many models, one of them is evicted again: deletions are cut short too.
EVICT_EVERY = 4
SEGMENT_BYTES = 64 << 10


class Unsynced(sqlite3.Connection):
    """A connection that cannot be talked into syncing."""

    def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:  # type: ignore[override]
        return super().execute("PRAGMA synchronous=OFF" if sql.startswith("PRAGMA synchronous") else sql, *parameters)


def forget_to_sync() -> None:
    os.fsync = os.fdatasync = lambda _fd: None
    sqlite3.connect = functools.partial(sqlite3.connect, factory=Unsynced)  # type: ignore[assignment]


class Writer:
    """Several workers, each acquiring models that share files with those of the others."""

    def __init__(self, ack: pathlib.Path, origin: pathlib.Path) -> None:
        self._origin = origin
        self._ack = ack.open("a", buffering=1)
        self._turn = threading.Lock()
        self._numbers = itertools.count()

    def __call__(self, daemon: Inside) -> None:
        with ThreadPoolExecutor(WORKERS) as workers:
            for ended in [workers.submit(self._work, daemon) for _ in range(WORKERS)]:
                ended.result()

    def _work(self, daemon: Inside) -> None:
        while True:
            number = next(self._numbers)
            name = f"m{number}"
            if not (self._origin / name).exists():
                tree = objects.model(number, unet=(64 + 150 * (number % 3)) << 10, text_encoder=40_000, vae=20_000)
                objects.write(self._origin / f".{name}", tree).rename(self._origin / name)
            lease = daemon.acquire(name)
            if number % EVICT_EVERY == 0:
                daemon.release(lease)
                daemon.evict(lease["revision"])
            else:
                self._note({"revision": lease["revision"], "files": {file["path"]: file["digest"] for file in lease["files"]}})

    def _note(self, promise: dict[str, object]) -> None:
        with self._turn:
            self._ack.write(json.dumps(promise) + "\n")


def main() -> None:
    root, ack = pathlib.Path(os.environ["ROOT"]), pathlib.Path(os.environ["ACK"])
    if "--without-sync" in sys.argv[1:]:
        forget_to_sync()
    origin = ack.with_name("origin")  # outlives the cut: what matters is what becomes of the store
    origin.mkdir(exist_ok=True)
    run_inside(
        root / "store", socket=ack.with_name("s"), story=Writer(ack, origin), base=f"file://{origin}", roots=[str(origin)],
        fetch={"segment_bytes": SEGMENT_BYTES}, budget="100%",
    )  # fmt: skip


if __name__ == "__main__":
    main()
