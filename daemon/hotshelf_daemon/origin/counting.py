"""Counts requests and bytes at an origin: a decorator of the port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hotshelf_daemon.metrics import Metrics
from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin.port import Body, Origin, SplicedBody
from hotshelf_shared.errors import HotshelfError

T = TypeVar("T")


class _CountedBody:
    def __init__(self, body: Body, count: Callable[[float], None]) -> None:
        self._body, self._count = body, count

    def readinto(self, buffer: memoryview, /) -> int:
        taken = self._body.readinto(buffer)
        self._count(taken)
        return taken


class _CountedSplicedBody(_CountedBody):
    def __init__(self, body: SplicedBody, count: Callable[[float], None]) -> None:
        super().__init__(body, count)
        self._splice = body.splice

    def splice(self, pipe: int, most: int, /) -> int:
        taken = self._splice(pipe, most)
        self._count(taken)
        return taken


class Counting:
    def __init__(self, origin: Origin, metrics: Metrics) -> None:
        self._origin = origin
        self._results = metrics.origin_requests
        self._bytes = metrics.origin_bytes.labels(origin.label)
        self.name = origin.name
        self.label = origin.label

    def head(self, key: str) -> OriginObject | None:
        return self._counted(lambda: self._origin.head(key))

    def checksum(self, obj: OriginObject) -> Checksum | None:
        return self._counted(lambda: self._origin.checksum(obj))

    def list(self, folder: str) -> Iterator[OriginObject]:
        return iter(self._counted(lambda: [*self._origin.list(folder)]))

    def read(self, key: str, limit: int) -> bytes | None:
        return self._counted(lambda: self._origin.read(key, limit))

    @contextmanager
    def open(self, obj: OriginObject, start: int, stop: int) -> Iterator[Body]:
        result = "ok"
        try:
            with self._origin.open(obj, start, stop) as body:
                count = self._bytes.inc
                yield _CountedSplicedBody(body, count) if isinstance(body, SplicedBody) else _CountedBody(body, count)
        except HotshelfError as error:
            result = error.code
            raise
        finally:
            self._results.labels(self.label, result).inc()

    def _counted(self, ask: Callable[[], T]) -> T:
        result = "ok"
        try:
            return ask()
        except HotshelfError as error:
            result = error.code
            raise
        finally:
            self._results.labels(self.label, result).inc()
