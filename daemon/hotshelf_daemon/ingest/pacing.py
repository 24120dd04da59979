"""How many connections an origin is worth, and how fast bytes that nobody waits for may come: decided, not done.

`Climb` is told what each moment brought and says how many connections to keep. `Rate` says how long to wait, and `Pace`
when a request is not worth waiting for any longer.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from hotshelf_daemon.ingest.segment import Job, Run

#: Connections to begin with: enough for most origins, few enough for any.
FIRST = 8
#: What another step must bring, to be worth its connections.
GAIN = 1.1
#: What nobody goes below of its own accord: small files that wait for an answer each would wait one after another.
FEWEST = 4
#: Two are enough to keep what is busy busy, one while the other waits.
FEWEST_BUSY = 2
#: Another number is tried for so many moments. Fewer must bring this share of the best; less than `LOSS` is not tried again.
TRIES = 3
KEPT = 0.95
#: And so much where processors are the bound: fewer then cost less for the same, and moments are the more uneven.
KEPT_BUSY = 0.9
LOSS = 0.8
#: A fall below this share of the best means that the origin is another one by now: climb anew.
FALL = 0.6
#: Moments between two looks at whether more would help by now.
PATIENCE = 40
#: In the tail a run is slow when for so long it brings less than this share of what is usual.
SLOW_S = 1.0
SLOW_SHARE = 0.1
#: One refusal seldom comes alone: those of one moment are one. Seconds, as is what is waited until climbing again.
REFUSALS_S = 1.0
CALM_S = 5.0


class _Step(Enum):
    UP = auto()
    LEVEL = auto()
    DOWN = auto()
    STAY = auto()


@dataclass(slots=True)
class Climb:
    """As few connections as bring the most: doubled while goodput rises, halved when that never helped and fewer bring as
    much, and halved when the origin refuses. Processors change hands between connections that are too many: where they are
    the bound, fewer are tried at once, and down to less."""

    most: int
    limit: int = field(init=False)
    _best: float = 0.0
    _before: int = field(init=False)
    _step: _Step = field(init=False, default=_Step.UP)
    #: Fewer than these brought less.
    _needed: int = 1
    _is_busy: bool = False
    _fallen: int = 0
    _quiet_moments: int = 0
    _tried: list[float] = field(default_factory=list)
    _refused_at: float = -CALM_S

    def __post_init__(self) -> None:
        self.limit = self._before = min(FIRST, self.most)

    def moment(self, rate: float, now: float, *, is_busy: bool = False) -> None:
        """A moment in which exactly these connections were at work brought `rate` bytes a second; whether it took all of the
        processors' time."""
        if now - self._refused_at < CALM_S:
            return
        if self._step is _Step.UP and is_busy:
            self.limit = self._before if self._best else self.limit
            self._step, self._is_busy, self._needed, self._tried = _Step.LEVEL, True, 1, []
        elif self._step is _Step.UP:
            self._climb(rate)
        elif self._step is _Step.LEVEL:
            self._level(rate)
        elif self._step is _Step.DOWN:
            self._descend(rate)
        else:
            self._stay(rate)

    def refused(self, now: float) -> None:
        if now - self._refused_at >= REFUSALS_S:
            self.limit = self._before = max(1, self.limit // 2)
            self._best, self._needed, self._step, self._refused_at, self._is_busy = 0.0, 1, _Step.UP, now, False

    def _climb(self, rate: float) -> None:
        if rate >= GAIN * self._best:
            if self._best:
                self._needed = self.limit
            self._best, self._before = rate, self.limit
            self._try_more()
            return
        self._tried.append(rate)
        if len(self._tried) == TRIES:  # one moment says little: new connections wait for their first byte
            self.limit = self._before
            self._try_fewer()

    def _try_more(self) -> None:
        self._before, self.limit, self._tried = self.limit, min(self.most, 2 * self.limit), []
        if self.limit == self._before:
            self._settle()

    def _level(self, rate: float) -> None:
        """What this number brings, before fewer are tried."""
        self._tried.append(rate)
        if len(self._tried) == TRIES:
            self._best = statistics.mean(self._tried)
            self._try_fewer()

    def _descend(self, rate: float) -> None:
        self._tried.append(rate)
        brought, kept = statistics.mean(self._tried), KEPT_BUSY if self._is_busy else KEPT
        hopeless = rate < LOSS * self._best and not self._is_busy
        if hopeless or (len(self._tried) == TRIES and brought < kept * self._best):
            self.limit = self._needed = self._before
            self._settle()
        elif len(self._tried) == TRIES:
            self._best = max(self._best, brought)
            self._try_fewer()

    def _try_fewer(self) -> None:
        fewest = FEWEST_BUSY if self._is_busy else FEWEST
        self._before, self.limit = self.limit, min(self.limit, max(self.limit // 2, self._needed, fewest))
        self._step, self._tried = _Step.DOWN, []
        if self.limit == self._before:
            self._settle()

    def _settle(self) -> None:
        self._step, self._fallen, self._quiet_moments = _Step.STAY, 0, 0

    def _stay(self, rate: float) -> None:
        self._fallen = self._fallen + 1 if rate < FALL * self._best else 0
        self._quiet_moments += 1
        if self._fallen >= 3:
            self._needed = 1  # it is another origin by now
        if self._fallen >= 3 or self._quiet_moments >= PATIENCE:
            self._best, self._step, self._is_busy = rate, _Step.UP, False
            self._try_more()


class Rate:
    """Bytes a second over all who ask; 0 is no bound. Thread-safe. A pause earns nothing but a moment's worth."""

    def __init__(self, rate: int, *, now: Callable[[], float] = time.monotonic, burst_s: float = 0.05) -> None:
        self._rate, self._now, self._burst_s = rate, now, burst_s
        self._due, self._lock = 0.0, threading.Lock()

    def wait_s(self, count: int) -> float:
        """Seconds to wait after these bytes came."""
        if not self._rate:
            return 0.0
        with self._lock:
            now = self._now()
            self._due = max(self._due, now - self._burst_s) + count / self._rate
            return max(0.0, self._due - now)


class Pace:
    """How fast one run comes, beside what a connection of this file brings on the average."""

    def __init__(self, job: Job, run: Run) -> None:
        self._job, self._run = job, run
        self._began = self._since = time.monotonic()
        self._at = run.at

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._began

    def is_slow(self) -> bool:
        """Whether the last moments brought next to nothing of what is usual. Asked now and then."""
        now = time.monotonic()
        if not self._run.is_asking:  # its thread has not begun, or the origin has told it to wait
            self._since, self._at = now, self._run.at
        if (passed := now - self._since) < SLOW_S:
            return False
        rate, self._since, self._at = (self._run.at - self._at) / passed, now, self._run.at
        return bool(self._job.rates) and rate < SLOW_SHARE * statistics.median(self._job.rates)
