"""Threads and the event loop that waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from hotshelf_daemon.store import durable

T = TypeVar("T")


def begun(name: str, count: int, niceness: int) -> ThreadPoolExecutor:
    """A pool with all of its threads: later ones would be as modest as the thread whose work they begin for."""
    pool = ThreadPoolExecutor(count, name, durable.be_modest, (niceness,))
    together = threading.Barrier(count)
    try:
        wait([pool.submit(together.wait) for _ in range(count)])
    except BaseException:  # no more threads to be had
        together.abort()
        raise
    return pool


async def told(asked: Future[T] | None, within_s: float) -> T | None:
    """What was answered by now, or in a moment. Not to know is no failure, whatever the reason."""
    if asked is not None:
        with contextlib.suppress(Exception):
            return await asyncio.wait_for(asyncio.wrap_future(asked), within_s)
    return None


async def through(work: Callable[[], object]) -> None:
    """To its end on a thread, however often the caller is cancelled meanwhile."""
    done = asyncio.get_running_loop().run_in_executor(None, work)
    while not done.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(done)
