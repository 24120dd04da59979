"""Files into the page cache before anybody maps them, as far as they fit into memory.

What is there already is found out, and not read. The biggest files go first: theirs are the longest waits. Nothing is read
that would only push out what was read before it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hotshelf.warming import pages, reading
from hotshelf.warming.pages import Span
from hotshelf_shared import memory
from hotshelf_shared.wire import Progress

__all__ = ["Warmed", "warm"]

TELL_S = 0.2
#: What one thread opens a file for. A file of several is read by several threads.
SPAN_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Warmed:
    """What became of files that were to be in the page cache, each content counted once.

    `cached_bytes` were there already, `read_bytes` were read in `seconds`, `skipped_bytes` are still on disk only:
    `short_of` says for want of what.
    """

    read_bytes: int
    cached_bytes: int
    skipped_bytes: int
    seconds: float
    short_of: Literal["memory", "time"] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "read_bytes": self.read_bytes,
            "cached_bytes": self.cached_bytes,
            "skipped_bytes": self.skipped_bytes,
            "seconds": round(self.seconds, 4),
            "short_of": self.short_of,
        }


def warm(
    sizes: Mapping[str, int],
    *,
    until: float = math.inf,
    on_progress: Callable[[Progress], object] | None = None,
    source: str = "",
    room: Callable[[int], float] = memory.room,
) -> Warmed:
    """Reads files (path → bytes) until all of them are cached, memory is used up or the clock says `until`.

    `until` is monotonic time in seconds; `room` tells how many bytes fit beside those that are cached. Progress is of phase
    ``warm``, counts what was cached as done, and ends at its total unless time runs out. Raises AccessDenied or
    IntegrityError naming the file that cannot be read.
    """
    began = time.monotonic()
    biggest_first = sorted(sizes, key=lambda path: (-sizes[path], path))
    missing = [span for path in biggest_first for span in pages.missing(path, sizes[path], until=until)]
    missing_bytes = sum(span.size for span in missing)
    cached = sum(sizes.values()) - missing_bytes
    chosen = fitting(missing, room(cached))
    teller = _Teller(on_progress, source, cached, sum(span.size for span in chosen), len(sizes))
    read = reading.read(chosen, until=until, tell=teller.tell)
    teller.end()
    short_of: Literal["memory", "time"] | None = None
    if read < missing_bytes:
        short_of = "memory" if read == teller.wanted else "time"
    return Warmed(read, cached, missing_bytes - read, time.monotonic() - began, short_of)


def fitting(missing: list[Span], room: float) -> list[Span]:
    """The first of them that make `room` bytes, in pieces that threads can share. Pure."""
    chosen = list[Span]()
    for span in missing:
        for start in range(span.start, span.stop, SPAN_BYTES):
            stop = int(min(start + SPAN_BYTES, span.stop, start + room))
            if stop <= start:
                return chosen
            chosen.append(Span(span.path, start, stop))
            room -= stop - start
    return chosen


class _Teller:
    """Reports now and then, and once at the end."""

    def __init__(
        self, on_progress: Callable[[Progress], object] | None, source: str, cached: int, wanted: int, files: int
    ) -> None:
        self.wanted = wanted
        self._on_progress, self._source, self._cached, self._files = on_progress, source, cached, files
        self._began = self._told = time.monotonic()
        self._read = 0

    def tell(self, read: int) -> None:
        self._read = read
        if time.monotonic() - self._told >= TELL_S:
            self._report()

    def end(self) -> None:
        self._report()

    def _report(self) -> None:
        self._told = time.monotonic()
        if self._on_progress is None:
            return
        rate = self._read / max(self._told - self._began, 1e-6)
        self._on_progress(
            Progress(
                "warm",
                bytes_done=self._cached + self._read,
                bytes_total=self._cached + self.wanted,
                rate_bytes_s=rate,
                eta_s=(self.wanted - self._read) / rate if rate else None,
                files_total=self._files,
                source=self._source,
            )
        )
