"""Spans of files through the page cache, by a few threads at once: that is what disks and networks are quick at.

The bytes go into one buffer per thread and are forgotten. Threads end by themselves within a block of the deadline; nobody
waits for one that hangs in a read, as on a network volume whose server is gone.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence

from hotshelf.warming.pages import BLOCK_BYTES, Span, opened
from hotshelf_shared.errors import IntegrityError

#: More were no faster on a disk; a network volume gives each stream its own share.
THREADS = 4

#: From the threads: bytes read, what went wrong, or None at a thread's end.
_News = queue.SimpleQueue[int | Exception | None]


def read(spans: Sequence[Span], *, until: float, tell: Callable[[int], object]) -> int:
    """Reads them, first ones first; the bytes read by `until` (monotonic seconds). `tell` is called here, with bytes so far.

    Raises AccessDenied or IntegrityError, and what `tell` raises; then the rest is left.
    """
    if time.monotonic() >= until:
        return 0
    work: queue.SimpleQueue[Span] = queue.SimpleQueue()
    for span in spans:
        work.put(span)
    news, enough, done = _News(), threading.Event(), 0
    threads = [
        threading.Thread(target=_work, args=(work, news, enough), name="hotshelf-warm", daemon=True)
        for _ in range(min(THREADS, len(spans)))
    ]
    try:
        for thread in threads:
            thread.start()
        running = len(threads)
        while running and (left_s := until - time.monotonic()) > 0:
            try:
                one = news.get(timeout=None if math.isinf(left_s) else left_s)
            except queue.Empty:
                break
            if isinstance(one, Exception):
                raise one
            if one is None:
                running -= 1
            else:
                done += one
                tell(done)
    finally:
        enough.set()
    return done


def _work(work: queue.SimpleQueue[Span], news: _News, enough: threading.Event) -> None:
    buffer = memoryview(bytearray(BLOCK_BYTES))
    try:
        while not enough.is_set():
            _read(work.get_nowait(), buffer, news, enough)
    except queue.Empty:
        pass
    except Exception as error:
        news.put(error)  # raised by whoever waits
    finally:
        news.put(None)


def _read(span: Span, buffer: memoryview, news: _News, enough: threading.Event) -> None:
    with opened(span.path) as fd:
        at = span.start
        while at < span.stop and not enough.is_set():
            got = os.preadv(fd, [buffer[: span.stop - at]], at)
            if got == 0:
                raise IntegrityError(f"{span.path} ends at {at:,} bytes", hint="`hotshelf verify` checks what is held.")
            at += got
            news.put(got)
