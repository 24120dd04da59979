"""Small files, one after another by the same thread: of a small file the steps are what costs, not the bytes.

A thread that has brought one goes on with the next that waits for the same origin, whoever wants it, without asking the
event loop in between; the loop hears of all that ended meanwhile at once. One that gets no answer holds up nobody but itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hotshelf_daemon.ingest.lanes import Lanes

T = TypeVar("T")
#: After so long a thread gives its lane back: others may have waited for it longer. Seconds.
ROUND_S = 0.25
#: One that has not ended by then sits in an errand that gets no answer: another thread is sent for the rest.
STUCK_S = 2 * ROUND_S
#: A thread is sent for each so many seconds of work: where errands are brief, more would stand in each other's way.
WORTH_S = 0.1
#: What the last errand took says this much of what the next one will.
RECENT = 0.2


@dataclass(slots=True, eq=False)
class _Round:
    """What one thread does on one lane; `at` is its last errand. `is_over` when it is to begin no other."""

    over: asyncio.Event
    at: _Errand | None = None
    is_over: bool = False


@dataclass(slots=True, eq=False)
class _Errand:
    is_prefetch: Callable[[], bool]
    work: Callable[[bool], Any]
    done: asyncio.Future[Any]
    by: _Round | None = None


@dataclass(slots=True)
class _Open:
    """The errands to one origin that nobody has begun, and how long each is likely to take."""

    usual_s: float = 1.0
    errands: list[_Errand] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, errand: _Errand) -> None:
        with self.lock:
            self.errands.append(errand)

    def withdraw(self, errand: _Errand) -> None:
        """Nobody waits for it any more: not for its thread either, if it is at it, whose lane is free for others."""
        with self.lock:
            if errand in self.errands:
                self.errands.remove(errand)
            elif errand.by is not None and errand.by.at is errand:
                errand.by.is_over = True
                errand.by.over.set()

    def take(self, by: _Round, *, stands_aside: bool) -> _Errand | None:
        """The next one. What nobody waits for only where that is what the lane was given for, and nothing else is there."""
        with self.lock:
            at = next((at for at, errand in enumerate(self.errands) if not errand.is_prefetch()), 0 if stands_aside else None)
            if by.is_over or at is None or not self.errands:
                return None
            errand = by.at = self.errands.pop(at)
            errand.by = by
            return errand

    def is_prefetch(self) -> bool:
        with self.lock:
            return all(errand.is_prefetch() for errand in self.errands)


class Errands:
    """`run` is called on the event loop's thread, and so are its answers given."""

    def __init__(self, lanes: Lanes, threads: Executor) -> None:
        self._lanes, self._threads = lanes, threads
        self._open: dict[str, _Open] = defaultdict(_Open)
        #: Rounds that wait for a lane, or are at work and getting on.
        self._rounds: Counter[str] = Counter()
        self._tasks = set[asyncio.Task[None]]()
        self._ended = deque[tuple[_Errand, Any, BaseException | None]]()
        self._is_told = False

    async def run(self, origin: str, is_prefetch: Callable[[], bool], work: Callable[[bool], T]) -> T:
        """What `work` answers on a thread, told whether it is to stand aside for demand.

        When cancelled, `work` may still be under way, and is not waited for: it must come to know by other means.
        """
        errand = _Errand(is_prefetch, work, asyncio.get_running_loop().create_future())
        self._open[origin].add(errand)
        self._send(origin)
        self._lanes.look_again()  # a round that waited for prefetch may be one for demand by now
        try:
            answer: T = await errand.done
            return answer
        except asyncio.CancelledError:
            self._open[origin].withdraw(errand)
            raise

    def _send(self, origin: str) -> None:
        """As many rounds as may be; and one more, since only while somebody waits is it known that all lanes are at work."""
        there = self._open[origin]
        wanted = min(len(there.errands), math.ceil(len(there.errands) * there.usual_s / WORTH_S))
        while self._rounds[origin] < min(wanted, self._lanes.limit(origin) + 1):
            self._rounds[origin] += 1
            task = asyncio.create_task(self._round(origin))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _round(self, origin: str) -> None:
        there, by = self._open[origin], _Round(asyncio.Event())
        with contextlib.ExitStack() as counted:
            counted.callback(self._uncount, origin)
            try:
                async with self._lanes.take(origin, there.is_prefetch) as stands_aside:
                    if stands_aside:
                        counted.close()  # it may have to stand still for long, and holds up no demand meanwhile
                    loop = asyncio.get_running_loop()
                    work = loop.run_in_executor(self._threads, self._go, loop, there, by, stands_aside)
                    work.add_done_callback(lambda _: by.over.set())
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(STUCK_S):
                            await by.over.wait()
                    counted.close()
                    await by.over.wait()
            except Exception as error:  # no more threads to be had
                if (errand := there.take(by, stands_aside=True)) is not None and not errand.done.done():
                    errand.done.set_exception(error)
                by.is_over = True

    def _uncount(self, origin: str) -> None:
        self._rounds[origin] -= 1
        self._send(origin)

    def _go(self, loop: asyncio.AbstractEventLoop, there: _Open, by: _Round, stands_aside: bool) -> None:
        now = time.monotonic()
        until = now + ROUND_S
        while now < until and (errand := there.take(by, stands_aside=stands_aside)) is not None:
            try:
                self._ended.append((errand, errand.work(stands_aside and errand.is_prefetch()), None))
            except BaseException as error:
                self._ended.append((errand, None, error))
            began, now = now, time.monotonic()
            there.usual_s += RECENT * (now - began - there.usual_s)
            if not self._is_told:
                self._is_told = True
                loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._is_told = False
        while self._ended:
            errand, answer, error = self._ended.popleft()
            if errand.done.done():
                continue
            if error is None:
                errand.done.set_result(answer)
            else:
                errand.done.set_exception(error)
