"""Single flight: whoever asks for what is under way waits for that, and what nobody waits for any more is ended.

All on the event loop's thread, so no locks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class Flights(Generic[T]):
    """Tasks by key, each shared by everyone who joins it."""

    def __init__(self) -> None:
        self._flying: dict[Hashable, _Flight[T]] = {}
        self._ending: dict[Hashable, asyncio.Task[T]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flying

    def __len__(self) -> int:
        return len(self._flying)

    async def join(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result (or error) of the flight for `key`, which `start` begins unless it is under way.

        Cancelling the last one who waits cancels the flight, and waits until it has ended; so does whoever comes then, before
        a new one begins: no two ever work on the same key.
        """
        while key in self._ending:
            await asyncio.wait([self._ending[key]])
        flight = self._flying.get(key)
        if flight is None:
            flight = self._flying[key] = _Flight(asyncio.create_task(start()))
            flight.task.add_done_callback(lambda _: self._land(key, flight))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if flight.waiting == 0 and not flight.task.done():
                self._land(key, flight)
                self._ending[key] = flight.task
                flight.task.add_done_callback(lambda _: self._ending.pop(key))
                flight.task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):  # its outcome concerns nobody any more
                    await flight.task

    def _land(self, key: Hashable, flight: _Flight[T] | None) -> None:
        if self._flying.get(key) is flight:
            del self._flying[key]
            if flight is not None and flight.task.done() and not flight.task.cancelled():
                flight.task.exception()  # seen: an error nobody waited for is no "never retrieved" warning


def first_failure(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that ended a task group; the cancellations of its siblings are only the consequence."""
    flat = list(_flatten(failures))
    return next((error for error in flat if not isinstance(error, asyncio.CancelledError)), flat[0])


def _flatten(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _flatten(inner)
    else:
        yield error
