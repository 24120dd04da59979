"""How far one acquire is: bytes, rate and time left, over all the contents it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hotshelf_daemon.ingest import Meter
from hotshelf_shared.errors import InsufficientSpace
from hotshelf_shared.wire import Progress

WINDOW_S = 5.0


@dataclass(slots=True)
class Gauge:
    """Filled in by the acquire, read by whoever streams its progress."""

    source: str
    phase: str = "resolve"
    seconds: dict[str, float] = field(default_factory=dict)
    held_bytes: int = 0
    meters: list[Meter] = field(default_factory=list)
    #: Why there was no room when it last asked for some.
    refusal: InsufficientSpace | None = None
    clock: Callable[[], float] = time.monotonic
    _seen: list[tuple[float, int]] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)

    def enter(self, phase: str) -> None:
        """The acquire goes on to another phase; how long the one before took is kept in `seconds`."""
        now = self.clock()
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self._since
        self.phase, self._since = phase, now

    def progress(self) -> Progress:
        now, arrived = self.clock(), sum(meter.done for meter in self.meters)
        self._seen = [(at, done) for at, done in self._seen if now - at <= WINDOW_S] + [(now, arrived)]
        (since, before), span = self._seen[0], now - self._seen[0][0]
        rate = (arrived - before) / span if span > 0 and since < now else 0.0
        total = sum(meter.size for meter in self.meters)
        return Progress(
            phase=self.phase,
            bytes_done=self.held_bytes + arrived,
            bytes_total=self.held_bytes + total,
            rate_bytes_s=rate,
            eta_s=(total - arrived) / rate if rate > 0 else None,
            files_done=sum(meter.done >= meter.size for meter in self.meters),
            files_total=len(self.meters),
            source=self.source,
        )
