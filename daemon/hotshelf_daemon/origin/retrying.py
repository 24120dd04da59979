"""Retries for the control plane: a decorator of the port that asks again when asking again can help.

Ranged reads are not retried here: ingest resumes them where they stopped. But when the origin asks one to slow down, all
wait: a request that would be refused costs the origin as much as one that is served.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin.port import Body, Busy, Origin
from hotshelf_shared.errors import OriginUnavailable

T = TypeVar("T")
FIRST_DELAY_S = 0.1
MAX_DELAY_S = 8.0


def delay_s(attempt: int, *, asked: float | None = None, jitter: Callable[[], float] = random.random) -> float:
    """Full jitter over a doubling delay; `asked` is the origin's Retry-After, which is obeyed."""
    doubled = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0**attempt)
    return max(asked or 0.0, doubled * (0.5 + jitter() / 2))


def again(ask: Callable[[], T], attempts: int, *, sleep: Callable[[float], object] = time.sleep) -> T:
    """What `ask` answers, after so many attempts at the most. Raises OriginUnavailable when that was not enough."""
    for attempt in range(attempts):
        try:
            return ask()
        except OriginUnavailable as error:
            if not error.retryable or attempt + 1 == attempts:
                raise
            sleep(delay_s(attempt, asked=error.retry_after_s))
    raise AssertionError("attempts is at least 1")


class Retrying:
    def __init__(self, origin: Origin, attempts: int, *, sleep: Callable[[float], object] = time.sleep) -> None:
        self._quiet = _Quiet(sleep)
        self._origin = origin
        self._attempts = attempts
        self._sleep = sleep
        self.name = origin.name
        self.label = origin.label

    def head(self, key: str) -> OriginObject | None:
        return self._again(lambda: self._origin.head(key))

    def checksum(self, obj: OriginObject) -> Checksum | None:
        self._quiet.wait()
        return self._origin.checksum(obj)  # one can do without: not worth a second question

    def list(self, folder: str) -> Iterator[OriginObject]:
        return iter(self._again(lambda: [*self._origin.list(folder)]))

    def read(self, key: str, limit: int) -> bytes | None:
        return self._again(lambda: self._origin.read(key, limit))

    @contextmanager
    def open(self, obj: OriginObject, start: int, stop: int) -> Iterator[Body]:
        self._quiet.wait()
        try:
            with self._origin.open(obj, start, stop) as body:
                self._quiet.over()
                yield body
        except Busy as error:
            self._quiet.extend(error.retry_after_s)
            raise

    def _again(self, ask: Callable[[], T]) -> T:
        for attempt in range(self._attempts):
            self._quiet.wait()
            try:
                return ask()
            except OriginUnavailable as error:
                if isinstance(error, Busy):
                    self._quiet.extend(error.retry_after_s)
                if not error.retryable or attempt + 1 == self._attempts:
                    raise
                self._sleep(delay_s(attempt, asked=error.retry_after_s))
        raise AssertionError("attempts is at least 1")


class _Quiet:
    """Until when nobody asks this origin anything. Each refusal in a row makes it longer."""

    def __init__(self, sleep: Callable[[float], object]) -> None:
        self._sleep = sleep
        self._lock = threading.Lock()
        self._until = 0.0
        self._refusals = 0

    def wait(self) -> None:
        if (left := self._until - time.monotonic()) > 0:
            self._sleep(left)

    def extend(self, asked: float | None) -> None:
        with self._lock:
            self._until = max(self._until, time.monotonic() + delay_s(self._refusals, asked=asked))
            self._refusals += 1

    def over(self) -> None:
        self._refusals = 0
