"""One segment of one ingest, on a thread: ranged GET → file → checksum, hash; taken up again where it broke."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from awscrt.checksums import crc64nvme

from hotshelf_daemon.ingest.frontier import Frontier
from hotshelf_daemon.ingest.moving import Mover, mover, pieces_of
from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin import Misanswered, Origin, delay_s
from hotshelf_daemon.store.durable import as_ours, start_writeback
from hotshelf_shared.errors import OriginUnavailable

#: An attempt that brought less has not helped: breaking again and again after a few bytes must come to an end.
WORTHWHILE_BYTES = 64 << 10
#: What is less is written when the file is sealed.
WRITTEN_EARLY_BYTES = 1 << 20


class Stopped(Exception):
    """The ingest was given up while this segment was under way."""


@dataclass(slots=True, weakref_slot=True)
class Meter:
    """Bytes of one content that have arrived, for progress. Written by many threads, each its own entry."""

    size: int
    parts: dict[int, int] = field(default_factory=dict)
    kept: int = 0

    @property
    def done(self) -> int:
        return min(self.size, self.kept + sum(self.parts.copy().values()))


class Traffic(Protocol):
    """What a download is within all that is under way."""

    def came(self, count: int) -> None:
        """Bytes arrived."""
        ...

    def pause(self, count: int, goes_on: Callable[[], bool]) -> bool:
        """Lets others go first after these bytes, for as long as it `goes_on`; whether it waited."""
        ...

    def refused(self) -> None:
        """The origin asks for less, or does not answer."""
        ...


class Alone:
    """Nothing else is under way."""

    def came(self, count: int) -> None: ...

    def pause(self, count: int, goes_on: Callable[[], bool]) -> bool:  # noqa: ARG002
        return False

    def refused(self) -> None: ...


@dataclass(slots=True, eq=False)
class Run:
    """One segment under way: bytes [start, at) are in the file, `crc` is theirs, `ticket` is of the thread at work on it.

    `stands_aside` for demand: nobody waits for it. `is_asking` while bytes may come: it has begun, and is not told to wait.
    """

    start: int
    stop: int
    at: int
    crc: int = 0
    ticket: int = 0
    owns_hash: bool = False
    stands_aside: bool = False
    is_asking: bool = False
    is_touched: bool = False

    @classmethod
    def of(cls, start: int, stop: int, *, stands_aside: bool = False) -> Run:
        return cls(start, stop, start, stands_aside=stands_aside)


@dataclass(slots=True)
class Job:
    """What all segments of an ingest share.

    Invariant: after `halt` no segment touches the file any more, and after `take_over` not that one, though a thread may
    still sit in a read from an origin that has gone quiet: whoever gave up need not wait for that.
    """

    origin: Origin
    object: OriginObject
    fd: int
    frontier: Frontier
    meter: Meter
    attempts: int
    traffic: Traffic = field(default_factory=Alone)
    floor_rate: float = 0
    floor_window_s: float = 20
    #: Nothing ties a second request to the version of the first: what broke off cannot be taken up.
    loose: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    #: When the last bytes came, by time.monotonic().
    last_at: float = field(default_factory=time.monotonic)
    #: Bytes a second of each run that is through.
    rates: list[float] = field(default_factory=list)
    #: The kernel lets one thread write to a file at a time, and the others spin on their processors meanwhile.
    writing: threading.Lock = field(default_factory=threading.Lock)
    _touching: int = 0
    #: How many wait for others to leave the file.
    _awaited: int = 0
    _touched: threading.Condition = field(default_factory=lambda: threading.Condition(threading.Lock()))

    @contextmanager
    def touching(self, run: Run | None = None, ticket: int = 0) -> Iterator[None]:
        """Around every use of the file. Raises Stopped when it was given up, or the run belongs to another thread by now."""
        self.touch(run, ticket)
        try:
            yield
        finally:
            self.leave(run)

    def touch(self, run: Run | None, ticket: int) -> None:
        """`touching`'s beginning, for whoever needs it thousands of times a second. Always followed by `leave`."""
        with self._touched:
            if self.stop.is_set() or (run is not None and run.ticket != ticket):
                raise Stopped
            self._touching += 1
            if run is not None:
                run.is_touched = True

    def leave(self, run: Run | None) -> None:
        with self._touched:
            self._touching -= 1
            if run is not None:
                run.is_touched = False
            if self._awaited:
                self._touched.notify_all()

    def is_at(self, run: Run, ticket: int) -> bool:
        return not self.stop.is_set() and run.ticket == ticket

    def halt(self) -> None:
        """Gives it up; returns when nobody touches the file."""
        with self._touched:
            self.stop.set()
            self._await(lambda: not self._touching)
        self.frontier.halt()

    def take_over(self, run: Run) -> None:
        """Takes a run from the thread that is at work on it, so that another may go on where it stands."""
        with self._touched:
            run.ticket, run.is_asking = run.ticket + 1, False
            self._await(lambda: not run.is_touched)

    def _await(self, left: Callable[[], bool]) -> None:
        self._awaited += 1
        try:
            self._touched.wait_for(left)
        finally:
            self._awaited -= 1

    def give_up_hash(self, run: Run, ticket: int) -> None:
        """A thread that is at its end leaves the hash to others, unless its run has been taken over, and the hash with it."""
        with self._touched:
            if run.owns_hash and run.ticket == ticket:
                run.owns_hash = False
                self.frontier.disown()


def fetch(job: Job, start: int, stop: int) -> int:
    """Brings [start, stop) into the file; its CRC-64/NVME."""
    return carry(job, Run.of(start, stop), 0)


def carry(job: Job, run: Run, ticket: int) -> int:
    """Brings the rest of a run into the file; the CRC-64/NVME of all of it. `ticket` is the run's when this was asked for.

    Retries what may pass, resuming at the byte where it broke. Raises Stopped when it was given up or taken over.
    """
    attempt = 0
    with job.touching(run, ticket):
        if run.at == run.start and not run.owns_hash:
            run.owns_hash = job.frontier.own(run.start)
    try:
        while run.at < run.stop:
            with job.touching(run, ticket):
                began, run.is_asking = run.at, True
            try:
                _pour(job, run, ticket)
            except (OriginUnavailable, Misanswered) as error:
                with job.touching(run, ticket):
                    run.is_asking = False
                attempt = attempt + 1 if run.at - began < WORTHWHILE_BYTES else 1
                hopeless = isinstance(error, OriginUnavailable) and not error.retryable
                if isinstance(error, OriginUnavailable) and not run.stands_aside:
                    job.traffic.refused()
                if hopeless or attempt >= job.attempts or (job.loose and run.at > run.start):
                    raise
                if job.stop.wait(delay_s(attempt, asked=error.retry_after_s)):
                    raise Stopped from error
    finally:
        job.give_up_hash(run, ticket)
    with job.touching(run, ticket):
        if run.stop - run.start >= WRITTEN_EARLY_BYTES:
            start_writeback(job.fd, run.start, run.stop)  # so that the disk has less to do when all has arrived
        job.frontier.arrived(run.start, run.stop, run.crc)
        job.frontier.let_go()
    return run.crc


def _pour(job: Job, run: Run, ticket: int) -> None:
    """One request for the rest of the run."""
    with job.origin.open(job.object, run.at, run.stop) as body, mover(body, run.stop - run.at) as way:
        floor = _Floor(job)
        while run.at < run.stop:
            if job.stop.is_set():
                raise Stopped
            taken = way.take(run.stop - run.at)
            if not taken:
                raise OriginUnavailable(f"{job.object.key} ended {run.stop - run.at:,} bytes early")
            job.touch(run, ticket)
            try:
                _put(job, run, way, taken)
            finally:
                job.leave(run)
            job.traffic.came(taken)
            floor.came(taken, job.last_at)
            if run.stands_aside and job.traffic.pause(taken, lambda: job.is_at(run, ticket)):
                floor = _Floor(job)


def _put(job: Job, run: Run, way: Mover, taken: int) -> None:
    """The run's next bytes, into the file and into the sums."""
    crc, seen = run.crc, 0
    try:
        with job.writing:
            way.put(job.fd, run.at)
        for piece in way.pieces(job.fd, run.at):
            crc, seen = crc64nvme(piece, crc), seen + len(piece)
            if run.owns_hash:
                job.frontier.feed(piece)
        if seen != taken:
            raise OSError(errno.EIO, f"{taken} bytes were written and {seen} are there")
    except OSError as error:
        raise as_ours(error, "writing a download") from error
    run.crc, run.at = crc, run.at + taken
    job.meter.parts[run.start], job.last_at = run.at - run.start, time.monotonic()


class _Floor:
    """A connection that brings next to nothing is as good as a silent one, and is dropped like it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._since, self._bytes = time.monotonic(), 0

    def came(self, count: int, now: float) -> None:
        """Raises OriginUnavailable when a whole window has brought less than it must."""
        self._bytes += count
        window_s = now - self._since
        if window_s < self._job.floor_window_s:
            return
        if self._bytes < self._job.floor_rate * window_s:
            raise OriginUnavailable(f"{self._job.object.key} came at {self._bytes / window_s:,.0f} bytes a second")
        self._since, self._bytes = now, 0


def checksum(fd: int, start: int, stop: int) -> int:
    """The CRC-64/NVME of what the file holds there now; none when it ends before."""
    crc = 0
    for piece in pieces_of(fd, start, stop):
        crc, start = crc64nvme(piece, crc), start + len(piece)
    return crc if start == stop else -1
