"""One segment of one ingest, on a thread: ranged GET → buffer → checksum, hash, pwrite; taken up again where it broke.

No allocation per chunk: every thread keeps one buffer for good.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from awscrt.checksums import crc64nvme

from hotshelf_daemon.ingest.frontier import Frontier
from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin import Misanswered, Origin, delay_s
from hotshelf_daemon.store.durable import disk_errors, pwrite_all, start_writeback
from hotshelf_shared.errors import OriginUnavailable

#: Small enough for a processor's cache; writes of a megabyte cost seven times as much on kernels with large folios.
BUFFER_BYTES = 256 << 10
#: An attempt that brought less has not helped: breaking again and again after a few bytes must come to an end.
WORTHWHILE_BYTES = 64 << 10
_thread = threading.local()


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

    def pause(self, count: int, stop: threading.Event) -> bool:
        """Lets others go first after these bytes; whether it waited."""
        ...

    def refused(self) -> None:
        """The origin asks for less, or does not answer."""
        ...


class Alone:
    """Nothing else is under way."""

    def came(self, count: int) -> None: ...

    def pause(self, count: int, stop: threading.Event) -> bool:  # noqa: ARG002
        return False

    def refused(self) -> None: ...


@dataclass(slots=True)
class Job:
    """What all segments of an ingest share.

    Invariant: after `halt` no segment touches the file any more, though a thread may still sit in a read from an origin
    that has gone quiet: whoever gave up need not wait for that.
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
    _touching: int = 0
    _touched: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def touching(self) -> Iterator[None]:
        """Around every use of the file. Raises Stopped when it was given up."""
        with self._touched:
            if self.stop.is_set():
                raise Stopped
            self._touching += 1
        try:
            yield
        finally:
            with self._touched:
                self._touching -= 1
                self._touched.notify_all()

    def halt(self) -> None:
        """Gives it up; returns when nobody touches the file."""
        with self._touched:
            self.stop.set()
            self._touched.wait_for(lambda: not self._touching)


def fetch(job: Job, start: int, stop: int) -> int:
    """Brings [start, stop) into the file; its CRC-64/NVME. Retries what may pass, resuming at the byte it broke."""
    at, crc, attempt = start, 0, 0
    buffer = _buffer()
    owns = job.frontier.own(start)
    try:
        while at < stop:
            began = at
            try:
                with job.origin.open(job.object, at, stop) as body:
                    floor = _Floor(job)
                    while at < stop:
                        chunk = buffer[: _next_chunk(job, body.readinto, buffer, stop - at)]
                        with job.touching(), disk_errors("writing a download"):
                            pwrite_all(job.fd, chunk, at)
                        crc = crc64nvme(chunk, crc)
                        if owns:
                            job.frontier.feed(chunk)
                        at += len(chunk)
                        job.meter.parts[start], job.last_at = at - start, time.monotonic()
                        job.traffic.came(len(chunk))
                        floor.came(len(chunk))
                        if job.traffic.pause(len(chunk), job.stop):
                            floor = _Floor(job)
            except (OriginUnavailable, Misanswered) as error:
                attempt = attempt + 1 if at - began < WORTHWHILE_BYTES else 1
                hopeless = isinstance(error, OriginUnavailable) and not error.retryable
                if isinstance(error, OriginUnavailable):
                    job.traffic.refused()
                if hopeless or attempt >= job.attempts or (job.loose and at > start):
                    raise
                if job.stop.wait(delay_s(attempt, asked=error.retry_after_s)):
                    raise Stopped from error
    finally:
        if owns:
            job.frontier.disown()
    with job.touching():
        start_writeback(job.fd, start, stop)  # so that the disk has less to do when all has arrived
        job.frontier.arrived(start, stop)
        job.frontier.let_go()
    return crc


def _next_chunk(job: Job, readinto: Callable[[memoryview], int], buffer: memoryview, left: int) -> int:
    if job.stop.is_set():
        raise Stopped
    taken = readinto(buffer[: min(len(buffer), left)])
    if not taken:
        raise OriginUnavailable(f"{job.object.key} ended {left:,} bytes early")
    return taken


class _Floor:
    """A connection that brings next to nothing is as good as a silent one, and is dropped like it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._since, self._bytes = time.monotonic(), 0

    def came(self, count: int) -> None:
        """Raises OriginUnavailable when a whole window has brought less than it must."""
        self._bytes += count
        window_s = time.monotonic() - self._since
        if window_s < self._job.floor_window_s:
            return
        if self._bytes < self._job.floor_rate * window_s:
            raise OriginUnavailable(f"{self._job.object.key} came at {self._bytes / window_s:,.0f} bytes a second")
        self._since, self._bytes = time.monotonic(), 0


def checksum(fd: int, start: int, stop: int) -> int:
    """The CRC-64/NVME of what the file holds there now."""
    buffer, at, crc = _buffer(), start, 0
    while at < stop:
        taken = os.preadv(fd, [buffer[: min(len(buffer), stop - at)]], at)
        if not taken:
            return -1
        crc = crc64nvme(buffer[:taken], crc)
        at += taken
    return crc


def _buffer() -> memoryview:
    if not hasattr(_thread, "buffer"):
        _thread.buffer = memoryview(bytearray(BUFFER_BYTES))
    kept: memoryview = _thread.buffer
    return kept
