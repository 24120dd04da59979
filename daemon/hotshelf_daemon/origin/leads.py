"""Where addresses led to, for a while: a file that comes in a thousand ranges is not asked for a thousand redirects."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

MOST_KNOWN = 4_096


class Leads:
    """Kept for `keep_s` seconds each, 0 for not at all; what is signed into such an address is good for longer."""

    def __init__(self, keep_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s, self._clock = keep_s, clock
        self._known = OrderedDict[str, tuple[str, float]]()
        self._lock = threading.Lock()

    def of(self, url: str) -> str | None:
        with self._lock:
            led, until = self._known.get(url, ("", 0.0))
            return led if led and self._clock() < until else None

    def note(self, url: str, led: str) -> None:
        if not self._keep_s or led == url:
            return
        with self._lock:
            self._known[url] = led, self._clock() + self._keep_s
            self._known.move_to_end(url)
            while len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)

    def forget(self, url: str) -> None:
        with self._lock:
            self._known.pop(url, None)
