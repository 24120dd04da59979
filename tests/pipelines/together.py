"""Work done by threads that all begin at the same moment."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def at_once(jobs: Sequence[Callable[[], T]], *, timeout_s: float = 240.0) -> list[T]:
    """What each job returned, in order; raises what the first one that failed raised.

    Warnings are no errors meanwhile: their filters are the process's, and torch puts back those it found while another
    thread has set its own, so that a library's advice, which is silenced while building, would fail a test now and then.
    """
    begin = threading.Barrier(len(jobs))

    def work(job: Callable[[], T]) -> T:
        begin.wait(30)
        return job()

    with warnings.catch_warnings(), ThreadPoolExecutor(len(jobs)) as pool:
        warnings.simplefilter("ignore")
        return [one.result(timeout_s) for one in [pool.submit(work, job) for job in jobs]]
