"""Work that a caller does not wait for: one job after another on a thread of low priority, ended with the process.

At exit the jobs under way get `FINISH_S`; what is not done by then is not done, and nothing of it is visible.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable

FINISH_S = 30.0
_NICENESS = 10


class Background:
    """`submit` returns at once. The thread begins with the first job, in this process: a forked child begins its own."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._undone = 0
        self._changed = threading.Condition()
        self._owner = 0

    def submit(self, job: Callable[[], object]) -> None:
        """`job` says by itself what becomes of its failure."""
        with self._changed:
            self._undone += 1
            if self._owner != os.getpid():
                self._owner = os.getpid()
                threading.Thread(target=self._work, name="hotshelf-background", daemon=True).start()
        self._jobs.put(job)

    def finish(self, timeout_s: float = FINISH_S) -> bool:
        """Waits for everything submitted; False when time ran out."""
        until = time.monotonic() + timeout_s
        with self._changed:
            while self._undone and self._owner == os.getpid():
                if not self._changed.wait(max(0.0, until - time.monotonic())) and time.monotonic() >= until:
                    return False
        return True

    def _work(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # a thread has a priority of its own on Linux only
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while True:
            job = self._jobs.get()
            try:
                with contextlib.suppress(Exception):
                    job()
            finally:
                del job
                with self._changed:
                    self._undone -= 1
                    self._changed.notify_all()

    def forget(self) -> None:
        """In a forked child: the parent's jobs are the parent's."""
        self.__init__()  # type: ignore[misc]


background = Background()
os.register_at_fork(after_in_child=background.forget)
atexit.register(background.finish)
