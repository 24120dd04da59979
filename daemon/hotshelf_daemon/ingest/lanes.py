"""How many ranged reads are under way at once, over all files and origins, and whose turn is next.

Demand takes no notice of prefetch, which stands still meanwhile. Among those of a class files take turns, each with its
next range: so a file's bytes come in order and are hashed from the buffer, several files are hashed on several cores, and a
small file need not wait for a large one. All on the event loop's thread, but for `Lanes.came` and `Lanes.demand`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from hotshelf_daemon.ingest.pacing import Climb
from hotshelf_daemon.ingest.processors import Processors

MOMENT_S = 0.1


@dataclass(slots=True)
class _Lane:
    """What one origin is worth. `parts` are bytes that came, a count for each thread."""

    climb: Climb
    demand: int = 0
    prefetch: int = 0
    parts: dict[int, int] = field(default_factory=dict)
    seen: int = 0
    seen_at: float = 0.0
    full: bool = False


@dataclass(slots=True, eq=False)
class _Waiting:
    origin: str
    is_prefetch: Callable[[], bool]
    turn: int
    granted: asyncio.Future[bool]


class Lanes:
    """`most` bounds all of demand, `most_of` an origin's by name; prefetch may have a quarter as many beside them."""

    def __init__(self, most: int, most_of: Callable[[str], int]) -> None:
        self._most, self._most_of = most, most_of
        self._lanes: dict[str, _Lane] = {}
        self._waiting: list[_Waiting] = []
        self._turn = 0
        self._looking: asyncio.TimerHandle | None = None
        self._processors = Processors()
        #: Set while no demand is under way: what prefetch waits for.
        self.idle = threading.Event()
        self.idle.set()

    def limit(self, origin: str) -> int:
        """Connections that this origin gets now."""
        return min(self._most, self._lane(origin).climb.limit)

    def limits(self) -> Mapping[str, int]:
        return {name: self.limit(name) for name in self._lanes}

    @asynccontextmanager
    async def take(self, origin: str, is_prefetch: Callable[[], bool], *, turn: int = 0) -> AsyncIterator[bool]:
        """One ranged read; whether it is to stand aside for demand.

        `turn` counts a file's ranges; what comes late begins with what is being served now.
        """
        wait = _Waiting(origin, is_prefetch, self._turn + turn, asyncio.get_running_loop().create_future())
        self._waiting.append(wait)
        self._grant()
        try:
            prefetch = await wait.granted
        except asyncio.CancelledError:
            if wait in self._waiting:
                self._waiting.remove(wait)
            elif wait.granted.done() and not wait.granted.cancelled():
                self._end(origin, prefetch=wait.granted.result())  # our turn came at the very moment we were cancelled
            raise
        try:
            yield prefetch
        finally:
            self._end(origin, prefetch=prefetch)

    def came(self, origin: str, count: int) -> None:
        """Bytes arrived, on any thread."""
        parts, thread = self._lanes[origin].parts, threading.get_ident()
        parts[thread] = parts.get(thread, 0) + count

    def look_again(self) -> None:
        """What waits as prefetch may be demand by now."""
        self._grant()

    def refused(self, origin: str) -> None:
        """The origin asks for less, or does not answer."""
        self._lane(origin).climb.refused(time.monotonic())

    def _lane(self, origin: str) -> _Lane:
        if origin not in self._lanes:
            self._lanes[origin] = _Lane(Climb(min(self._most, self._most_of(origin))))
        return self._lanes[origin]

    def _grant(self) -> None:
        """Everybody whose turn it is goes."""
        while (wait := self._next()) is not None:
            self._waiting.remove(wait)
            lane, prefetch = self._lane(wait.origin), wait.is_prefetch()
            if prefetch:
                lane.prefetch += 1
            else:
                lane.demand += 1
                self.idle.clear()
            self._turn = max(self._turn, wait.turn)
            wait.granted.set_result(prefetch)
        if self._looking is None and any(lane.demand or lane.prefetch for lane in self._lanes.values()):
            self._looking = asyncio.get_running_loop().call_later(MOMENT_S, self._look)

    def _next(self) -> _Waiting | None:
        """Who waits longest of the first class that has a free lane."""
        demand = sum(lane.demand for lane in self._lanes.values())
        if demand >= self._most:
            return None
        there = [wait for wait in self._waiting if not wait.granted.done()]  # who is cancelled may not know it yet
        free = {origin for origin in {wait.origin for wait in there} if self._lane(origin).demand < self.limit(origin)}
        waiting = [wait for wait in there if wait.origin in free and not wait.is_prefetch()]
        if not waiting and not demand and sum(lane.prefetch for lane in self._lanes.values()) < max(1, self._most // 4):
            waiting = [wait for wait in there if self._lane(wait.origin).prefetch < self._most_prefetch(wait.origin)]
        return min(waiting, key=lambda wait: wait.turn, default=None)

    def _most_prefetch(self, origin: str) -> int:
        return max(1, self.limit(origin) // 4)

    def _end(self, origin: str, *, prefetch: bool) -> None:
        lane = self._lane(origin)
        if prefetch:
            lane.prefetch -= 1
        else:
            lane.demand -= 1
            if not any(one.demand for one in self._lanes.values()):
                self.idle.set()
        self._grant()

    def _look(self) -> None:
        """Tells each origin's climb what the last moment brought, if all of its connections were at work throughout."""
        self._looking = None
        now, is_busy = time.monotonic(), self._processors.are_busy()
        for name, lane in self._lanes.items():
            there, limit = sum(lane.parts.copy().values()), self.limit(name)
            # More than the limit are at work for a while after it sank: what they bring says nothing of the new one.
            full = lane.demand == limit and any(wait.origin == name for wait in self._waiting)
            if full and lane.full:
                if there == lane.seen:
                    continue  # it answers slowly: a longer moment
                lane.climb.moment((there - lane.seen) / (now - lane.seen_at), now, is_busy=is_busy)
            lane.full = full and there > lane.seen and self.limit(name) == limit
            lane.seen, lane.seen_at = there, now
        self._grant()
