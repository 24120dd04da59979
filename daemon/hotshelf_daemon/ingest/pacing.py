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
#: What nobody goes below of its own accord: small files that wait for an answer each would wait one after another. Where
#: processors are the bound two are enough, one at work while the other waits.
FEWEST = 4
FEWEST_BUSY = 2
#: Another number is tried for so many moments. Fewer must bring this share of the best; less than `LOSS` is not tried again.
TRIES = 3
KEPT = 0.95
#: And so much where processors are the bound: fewer cost less for the same. `GAIN` leads back from there.
KEPT_BUSY = 0.9
#: So many busy moments in a row say that they are, where it was not known before.
BUSY_MOMENTS = 5
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
    #: What this number brings is measured, before another is held against it.
    LEVEL = auto()
    DOWN = auto()
    STAY = auto()


@dataclass(slots=True)
class Climb:
    """As few connections as bring the most: doubled while goodput rises, halved when that never helped and fewer bring as
    much, and halved when the origin refuses.

    Processors change hands between connections that are too many. Where they are the bound, moments are uneven, so that
    means are compared, fewer are tried before more, and two may be enough.
    """

    most: int
    limit: int = field(init=False)
    _best: float = 0.0
    _before: int = field(init=False)
    _step: _Step = field(init=False, default=_Step.UP)
    #: Fewer than these brought less.
    _needed: int = 1
    #: Processors are the bound. They have been busy for so many moments in a row, or for so many they have not.
    _is_bound: bool = False
    _busy_for: int = 0
    _free_for: int = 0
    #: After LEVEL.
    _next: _Step = field(init=False, default=_Step.DOWN)
    _fallen: int = 0
    _quiet_moments: int = 0
    _tried: list[float] = field(default_factory=list)
    _refused_at: float = -CALM_S

    def __post_init__(self) -> None:
        self.limit = self._before = min(FIRST, self.most)

    def moment(self, rate: float, now: float, *, is_busy: bool = False) -> None:
        """A moment in which exactly these connections were at work brought `rate` bytes a second; `is_busy` when there was
        little processor time left."""
        if now - self._refused_at < CALM_S:
            return
        self._busy_for, self._free_for = (self._busy_for + 1, 0) if is_busy else (0, self._free_for + 1)
        if self._step is _Step.UP:
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
            self._best, self._needed, self._step, self._refused_at = 0.0, 1, _Step.UP, now
            self._is_bound, self._tried = False, []

    def _climb(self, rate: float) -> None:
        self._tried.append(rate)
        is_busy, is_last = self._busy_for > 0, len(self._tried) == TRIES
        if self.limit == self._before:  # the first number
            if is_busy and len(self._tried) > 1:
                self._measure(_Step.DOWN)
            elif not is_busy:
                self._keep_more(rate)
            return
        slowly = self._is_bound or is_busy
        brought = statistics.mean(self._tried) if slowly else rate
        if brought >= GAIN * self._best and (is_last or not slowly):
            self._keep_more(brought)
        elif is_last:  # one moment says little: new connections wait for their first byte
            self.limit = self._before
            if is_busy and not self._is_bound:
                self._measure(_Step.DOWN)
            else:
                self._try_fewer()

    def _keep_more(self, brought: float) -> None:
        if self._best:
            self._needed = self.limit
        self._best = brought
        self._try_more()

    def _try_more(self) -> None:
        self._step, self._tried = _Step.UP, []
        self._before, self.limit = self.limit, min(self.most, 2 * self.limit)
        if self.limit == self._before:
            self._settle()

    def _measure(self, then: _Step) -> None:
        self._step, self._next, self._is_bound, self._needed, self._tried = _Step.LEVEL, then, True, 1, []

    def _level(self, rate: float) -> None:
        self._tried.append(rate)
        if len(self._tried) == TRIES:
            self._best = statistics.mean(self._tried)
            if self._next is _Step.UP and self.limit < self.most:
                self._try_more()
            else:
                self._try_fewer()

    def _descend(self, rate: float) -> None:
        self._tried.append(rate)
        brought, kept = statistics.mean(self._tried), KEPT_BUSY if self._is_bound else KEPT
        hopeless = rate < LOSS * self._best and not self._is_bound
        if hopeless or (len(self._tried) == TRIES and brought < kept * self._best):
            self.limit = self._needed = self._before
            self._settle()
        elif len(self._tried) == TRIES:
            self._best = max(self._best, brought)
            self._try_fewer()

    def _try_fewer(self) -> None:
        fewest = FEWEST_BUSY if self._is_bound else FEWEST
        self._before, self.limit = self.limit, min(self.limit, max(self.limit // 2, self._needed, fewest))
        self._step, self._tried = _Step.DOWN, []
        if self.limit == self._before:
            self._settle()

    def _settle(self) -> None:
        self._step, self._fallen, self._quiet_moments = _Step.STAY, 0, 0

    def _stay(self, rate: float) -> None:
        self._fallen = self._fallen + 1 if rate < FALL * self._best else 0
        self._quiet_moments += 1
        is_due = self._quiet_moments >= PATIENCE
        if is_due and self._busy_for > 1:
            self._measure(_Step.UP)
        elif self._busy_for >= BUSY_MOMENTS and not self._is_bound:
            self._measure(_Step.DOWN)
        elif self._fallen >= 3 or (is_due and self._free_for > 1):
            self._needed = 1 if self._fallen >= 3 else self._needed  # it is another origin by now
            self._best, self._is_bound = rate, False
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
