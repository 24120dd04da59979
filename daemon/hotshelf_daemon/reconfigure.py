"""What a change of the configuration's file means for a daemon that runs: a new start in the same process, or nothing."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from hotshelf_daemon.config import Loaded, Settings, watched
from hotshelf_daemon.store import Layout
from hotshelf_shared.errors import BadConfiguration

log = logging.getLogger(__name__)
#: A file that is being written is read when nothing has happened to it for so long.
SETTLED_S = 0.2


def check_budget(settings: Settings, layout: Layout) -> None:
    """Raises BadConfiguration when the store can never hold as much."""
    total = layout.room().total_bytes
    if isinstance(settings.budget, int) and settings.budget > total:
        raise BadConfiguration(
            f"budget is {settings.budget:,} bytes and the file system of {settings.store} has {total:,}",
            hint="Lower `budget`, or give it as a percentage.",
        )


async def changed(loaded: Loaded, layout: Layout, reload: Callable[[], Loaded]) -> None:
    """Returns when the file says something else that can be used. What cannot be is logged, and the settings stay."""
    if loaded.path is None:
        await asyncio.Event().wait()
        return
    loop, touched = asyncio.get_running_loop(), asyncio.Event()

    def on_change() -> None:
        loop.call_soon_threadsafe(touched.set)

    with watched(loaded.path, on_change):
        seen: object = ()  # it may have been changed since it was read
        touched.set()
        while True:
            await touched.wait()
            touched.clear()
            if (now := _stamp(loaded.path)) == seen:
                continue  # a neighbour, our own log perhaps
            await asyncio.sleep(SETTLED_S)
            if now != _stamp(loaded.path):
                touched.set()
                continue
            seen = now
            if await asyncio.to_thread(_is_other, loaded, layout, reload):
                log.info("the configuration has changed", extra={"path": loaded.path})
                return


def _stamp(path: str) -> tuple[int, ...] | None:
    """Of the file behind all links; None while there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _is_other(loaded: Loaded, layout: Layout, reload: Callable[[], Loaded]) -> bool:
    try:
        fresh = reload().settings
        check_budget(fresh, layout)
    except (BadConfiguration, OSError) as error:
        log.warning(
            "the configuration cannot be used as it is; the one before holds",
            extra={"path": loaded.path, "why": str(error)},
        )
        return False
    return fresh != loaded.settings
