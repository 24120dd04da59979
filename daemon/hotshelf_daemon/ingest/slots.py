"""How many ranged reads are under way at once, over all files; demand goes before prefetch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    def __init__(self, count: int) -> None:
        self._free = count
        self._demand: deque[asyncio.Future[None]] = deque()
        self._prefetch: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def take(self, *, prefetch: bool) -> AsyncIterator[None]:
        if self._free:
            self._free -= 1
        else:
            queue = self._prefetch if prefetch else self._demand
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._give()  # it was our turn at the very moment we were cancelled
                raise
        try:
            yield
        finally:
            self._give()

    def _give(self) -> None:
        for queue in (self._demand, self._prefetch):
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._free += 1
