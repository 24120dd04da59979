"""What a recorder has seen and what it is to do: written by its connections, read and scripted by tests, under one lock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self, TypeVar

from tests.servers.faults import Amend, Answer, Before, Cut, Exchange, Fault, Rate, Stall
from tests.servers.http_stream import Head

F = TypeVar("F", bound=Fault)
SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


class Book:
    """Every exchange, and the faults still due."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._exchanges: list[Exchange] = []
        self._faults: list[Fault] = []
        self.rate = Rate()
        self.stopping = threading.Event()

    # ---- what was seen

    @property
    def requests(self) -> list[Exchange]:
        """All exchanges so far, oldest first. Each goes on changing until it is complete."""
        with self._changed:
            return list(self._exchanges)

    def matching(self, *, method: str | None = None, prefix: str = "", bucket: str | None = None) -> list[Exchange]:
        """Those of a method and bucket (None: any) whose key starts with `prefix`."""
        return [
            one
            for one in self.requests
            if method in (None, one.method) and bucket in (None, one.bucket) and one.key.startswith(prefix)
        ]

    def count(self, *, method: str | None = None, prefix: str = "", bucket: str | None = None) -> int:
        return len(self.matching(method=method, prefix=prefix, bucket=bucket))

    def bytes_for(self, prefix: str = "", *, bucket: str | None = None) -> int:
        """Bytes of objects below a key prefix that were sent to clients, successful GETs only."""
        return sum(one.body_bytes for one in self.matching(prefix=prefix, bucket=bucket) if one.is_object_read)

    def ranges_for(self, key: str) -> list[tuple[int, int] | None]:
        """The ranges asked of one object, in the order asked; None is the whole."""
        return [one.range for one in self.matching(method="GET") if one.key == key]

    def wait_until(self, true: Callable[[Self], object], *, timeout_s: float = 30.0) -> None:
        """Returns once `true(recorder)`; looked at whenever something passes. Raises AssertionError at the deadline."""
        with self._changed:
            if not self._changed.wait_for(lambda: true(self), timeout_s):
                raise AssertionError(f"waited {timeout_s:g} s in vain; requests so far: {len(self._exchanges)}")

    # ---- what to do to it

    def limit_rate(self, bytes_per_s: float | None) -> None:
        """For all connections together; None lifts it."""
        self.rate.set(bytes_per_s)

    def cut(self, prefix: str = "", *, after_bytes: int, times: int | None = 1, reset: bool = True) -> None:
        """Ends GETs of matching keys after so many body bytes: with a reset, or with a plain close."""
        self._add(Cut(prefix=prefix, times=times, after_bytes=after_bytes, reset=reset))

    def stall(self, prefix: str = "", *, after_bytes: int = 0, times: int | None = None) -> None:
        """GETs of matching keys go quiet after so many body bytes, until `resume()`."""
        self._add(Stall(prefix=prefix, times=times, after_bytes=after_bytes))

    def answer(
        self, status: int, body: bytes = SLOW_DOWN, *, prefix: str = "", method: str | None = "GET", times: int | None = 1,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Matching requests get this answer and never reach the origin."""
        self._add(Answer(prefix=prefix, method=method, times=times, status=status, body=body, extra=headers or {}))

    def before(
        self, act: Callable[[Exchange], None], *, prefix: str = "", method: str | None = "GET", times: int | None = 1
    ) -> None:
        """Calls `act(exchange)` before a matching request is handed on: to change the object under the reader."""
        self._add(Before(prefix=prefix, method=method, times=times, act=act))

    def amend(
        self, act: Callable[[Head], None], *, prefix: str = "", method: str | None = "GET", times: int | None = None
    ) -> None:
        """Calls `act(head)` on matching answers: `head.set("ETag", None)`, `head.first[1] = "200"`."""
        self._add(Amend(prefix=prefix, method=method, times=times, act=act))

    def resume(self) -> None:
        """Ends every stall."""
        with self._changed:
            for fault in self._faults:
                if isinstance(fault, Stall):
                    fault.over.set()
            self._faults = [fault for fault in self._faults if not isinstance(fault, Stall)]

    def heal(self) -> None:
        """Ends every stall, rate limit and fault."""
        self.resume()
        self.rate.set(None)
        with self._changed:
            self._faults.clear()

    def reset(self) -> None:
        """As new: healed, nothing recorded."""
        self.heal()
        with self._changed:
            self._exchanges.clear()

    def _add(self, fault: Fault) -> None:
        with self._changed:
            self._faults.append(fault)

    def due(self, kind: type[F], exchange: Exchange) -> F | None:
        """The first fault of a kind that is due, used up once."""
        with self._changed:
            for fault in self._faults:
                if isinstance(fault, kind) and fault.meets(exchange):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    # ---- for connections

    def enter(self, exchange: Exchange) -> None:
        with self._changed:
            self._exchanges.append(exchange)
            self._changed.notify_all()

    def note(self, exchange: Exchange, *, sent: int = 0, status: int | None = None, complete: bool | None = None) -> None:
        with self._changed:
            exchange.body_bytes += sent
            exchange.status = status if status is not None else exchange.status
            exchange.complete = complete if complete is not None else exchange.complete
            self._changed.notify_all()
