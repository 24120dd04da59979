"""What must happen without anybody asking: leases and hand-ins end, interrupted downloads are dropped, history is trimmed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from hotshelf_daemon.acquire import HandIns, Leasing, Preparer
from hotshelf_daemon.index import ingests, journal
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import blobs as files
from hotshelf_shared.errors import HotshelfError

log = logging.getLogger(__name__)
TICK_S = 0.5
SWEEP_S = 60.0
#: A tick that is so late was held up by something that held up every renewal too (SIGSTOP, a frozen cgroup, a laptop's lid).
STOPPED_S = 2.0
Keepers = dict[asyncio.BaseTransport, tuple[int, str]]


async def run(shelf: Shelf, leasing: Leasing, hand_ins: HandIns, preparer: Preparer, keepers: Keepers) -> None:
    """Runs until it is cancelled. A tick that fails (a full disk, say) is logged and the next one tries again."""
    swept = time.monotonic()
    while True:
        lay_down = time.monotonic()
        await asyncio.sleep(TICK_S)
        try:
            if (gap_s := time.monotonic() - lay_down - TICK_S) > STOPPED_S:
                log.warning("this process was stopped for a while", extra={"gap_s": round(gap_s, 1)})
                leasing.forgive(gap_s)
            notice_gone(leasing, keepers)
            await leasing.expire()
            await hand_ins.expire()
            await leasing.catch_up()
            await shelf.index.checkpoint()
            if time.monotonic() - swept >= SWEEP_S:
                swept = time.monotonic()
                await sweep(shelf, preparer)
                shelf.room_bell.ring()  # the disk may have more room by now, whoever made it
        except HotshelfError as error:
            log.warning("the janitor could not finish", extra={"code": error.code, "why": error.message})


def notice_gone(leasing: Leasing, keepers: Keepers) -> None:
    """EOF on a connection that carried renewals: its client's leases have only a moment left, unless it is back already."""
    gone = [transport for transport in keepers if transport.is_closing()]
    for transport in gone:
        uid, client = keepers.pop(transport)
        if (uid, client) not in keepers.values():
            leasing.client_gone(uid=uid, client=client)


async def sweep(shelf: Shelf, preparer: Preparer) -> None:
    """Drops interrupted downloads that nobody came back for, and history beyond what is kept."""
    async with shelf.hand:
        too_old = time.time() - shelf.settings.ingest_keep_s
        busy = preparer.busy()
        stale = [id_ for id_ in shelf.index.read(lambda db: ingests.untouched_since(db, too_old)) if id_ not in busy]

        async def carry_out() -> None:
            for id_ in stale:
                await asyncio.to_thread(files.drop_ingest, shelf.layout, id_)
            await shelf.index.write(lambda db: ingests.close(db, stale))

        await shelf.hand.finish(carry_out())
    await shelf.index.write(journal.trim)


async def stop_when_idle(connections: Callable[[], int], idle_s: float, stopping: asyncio.Event) -> None:
    """Embedded mode: nobody has been connected for `idle_s`."""
    last = time.monotonic()
    while time.monotonic() - last < idle_s:
        await asyncio.sleep(TICK_S)
        if connections():
            last = time.monotonic()
    log.info("idle", extra={"idle_s": idle_s})
    stopping.set()
