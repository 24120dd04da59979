"""Blobs whose bytes turned out wrong: out of the way, and whatever they were part of damaged."""

from __future__ import annotations

import asyncio
import sqlite3

from hotshelf_daemon.index import blobs, journal, snapshots
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import blobs as files
from hotshelf_daemon.store import hub, places
from hotshelf_shared.digest import Digest, Revision


async def condemn(shelf: Shelf, wrong: list[Digest], reason: str) -> list[Revision]:
    """The snapshots that are damaged now."""

    async def carry_out() -> list[Revision]:
        def change(db: sqlite3.Connection) -> list[Revision]:
            damaged = snapshots.damage(db, wrong, reason)
            blobs.remove(db, wrong)
            for digest in wrong:
                journal.event(db, "quarantined", digest, reason)
            return damaged

        damaged = await shelf.index.write(change, durable=True)
        await asyncio.to_thread(hub.hide, shelf.layout, wrong)
        await asyncio.to_thread(places.hide, shelf.layout, damaged)
        for digest in wrong:
            await asyncio.to_thread(files.quarantine, shelf.layout, digest)
        return damaged

    async with shelf.hand:
        damaged = await shelf.hand.finish(carry_out())
    shelf.metrics.verify_failures.labels("scrub").inc(len(wrong))
    return damaged
