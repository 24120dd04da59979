"""Resolutions onto the shelf without a lease: for whoever keeps things fresh, in the background or on request."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from functools import partial

from hotshelf_daemon.acquire.gauge import Gauge
from hotshelf_daemon.acquire.names import Want
from hotshelf_daemon.acquire.prepare import Preparer, wanted_digests
from hotshelf_daemon.flights import first_failure
from hotshelf_daemon.index import preparing
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.plan import Resolution
from hotshelf_daemon.shelf import Shelf
from hotshelf_shared.errors import HotshelfError

Resolved = tuple[Want, Resolution]


async def bring(
    shelf: Shelf, preparer: Preparer, resolved: Sequence[Resolved], gauge: Gauge, *, prefetch: bool
) -> list[RefRow]:
    """The ref of each, ready. As `prefetch` nothing is evicted for it, and it stands back for whoever waits.

    Room is made for all or for none; what then fails leaves what the others have become. Raises what their origin does,
    InsufficientSpace, TooLarge, IntegrityError, UnsafeContent.
    """
    with preparer.at_work([want for want, _ in resolved]):
        resolutions = [resolution for _, resolution in resolved]
        promised: list[str] = []
        try:
            await shelf.index.write(partial(_open, resolutions=resolutions))
            promised = await preparer.reserve(resolutions, evict=not prefetch)
            preparer.gauge(gauge, preparer.missing(resolutions))
            return await _prepare(preparer, resolved, gauge, prefetch=prefetch)
        except BaseException as error:
            why = error.code if isinstance(error, HotshelfError) else type(error).__name__
            idle = [one for one in resolutions if preparer.is_alone(one)]
            await shelf.index.write(partial(_fail, resolutions=idle, why=why))
            raise
        finally:
            await preparer.unclaim(promised)


def _open(db: sqlite3.Connection, *, resolutions: Sequence[Resolution]) -> None:
    for one in resolutions:
        preparing.open_(db, one.id, source=one.source, size=one.size, files=len(one.files))
        preparing.want(db, one.id, wanted_digests(one))


def _fail(db: sqlite3.Connection, *, resolutions: Sequence[Resolution], why: str) -> None:
    for one in resolutions:
        preparing.fail(db, one.id, why)


async def _prepare(preparer: Preparer, resolved: Sequence[Resolved], gauge: Gauge, *, prefetch: bool) -> list[RefRow]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(preparer.prepare(want, resolution, gauge, prefetch=prefetch)) for want, resolution in resolved
            ]
    except BaseExceptionGroup as failures:
        raise first_failure(failures) from failures
    return [task.result() for task in tasks]
