"""What one download is among all that is under way: its bytes are counted, and what nobody waits for lets others go first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from hotshelf_daemon.ingest.lanes import Lanes
from hotshelf_daemon.ingest.pacing import Rate

#: How often what stands aside for demand looks whether it may go on, seconds.
LOOK_S = 0.25


class Shared:
    """One download among all: prefetch stands still while anybody waits for something else, and keeps to its rate."""

    def __init__(self, lanes: Lanes, rate: Rate, origin: str, is_prefetch: Callable[[], bool]) -> None:
        self._lanes, self._rate = lanes, rate
        self._origin, self._is_prefetch = origin, is_prefetch
        self._loop = asyncio.get_running_loop()

    def came(self, count: int) -> None:
        self._lanes.came(self._origin, count)

    def refused(self) -> None:
        self._loop.call_soon_threadsafe(self._lanes.refused, self._origin)

    def pause(self, count: int, goes_on: Callable[[], bool]) -> bool:
        due, waited = time.monotonic() + self._rate.wait_s(count), False
        while goes_on() and self._is_prefetch():
            left_s = due - time.monotonic()
            if left_s <= 0 and self._lanes.idle.is_set():
                break
            waited = True
            if left_s > 0:
                time.sleep(min(left_s, LOOK_S))
            else:
                self._lanes.idle.wait(LOOK_S)
        return waited
