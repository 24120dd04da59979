"""A file hashed while it arrives, in whatever order; a segment that breaks and goes on where it broke."""

from __future__ import annotations

import os
import pathlib
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import pytest
from awscrt.checksums import crc32c, crc64nvme

from hotshelf_daemon.ingest import frontier as frontier_module
from hotshelf_daemon.ingest import segment
from hotshelf_daemon.ingest.frontier import Frontier
from hotshelf_daemon.ingest.segment import Job, Meter, Run, Stopped
from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin import Body, Changed, MemoryOrigin
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import InsufficientSpace, OriginUnavailable
from tests import objects
from tests.daemon.test_hand import Gate

DATA = objects.noise("frontier", 3_000_001)


@pytest.fixture
def fd(tmp_path: pathlib.Path) -> Iterator[int]:
    opened = os.open(tmp_path / "ingest", os.O_RDWR | os.O_CREAT)
    os.truncate(opened, len(DATA))
    yield opened
    os.close(opened)


def ranges(count: int) -> list[tuple[int, int]]:
    step = -(-len(DATA) // count)
    return [(start, min(start + step, len(DATA))) for start in range(0, len(DATA), step)]


class Broken(MemoryOrigin):
    """Every connection brings so many bytes and then breaks."""

    def __init__(self, after: int, breaks: int) -> None:
        super().__init__()
        self.after, self.breaks = after, breaks

    @contextmanager
    def open(self, obj: OriginObject, start: int, stop: int) -> Iterator[Body]:
        with super().open(obj, start, stop) as body:
            yield _BreakingBody(self, body) if self.breaks else body


class _BreakingBody:
    def __init__(self, origin: Broken, body: Body) -> None:
        self.origin, self.body, self.left = origin, body, origin.after

    def readinto(self, buffer: memoryview, /) -> int:
        if not self.left:
            self.origin.breaks -= 1
            raise OriginUnavailable("reset", retry_after_s=0)
        taken = self.body.readinto(buffer[: self.left])
        self.left -= taken
        return taken


def job(origin: MemoryOrigin, fd: int, attempts: int = 3) -> Job:
    origin.objects["k"] = DATA
    seen = origin.head("k")
    assert seen is not None
    return Job(origin, seen, fd, Frontier(fd, len(DATA)), Meter(len(DATA)), attempts)


@pytest.mark.parametrize("seed", range(5))
def test_segments_in_any_order_give_the_digest_of_the_whole(fd: int, seed: int) -> None:
    os.pwrite(fd, DATA, 0)
    frontier, order = Frontier(fd, len(DATA), kept=Checksum.crc32c(0)), ranges(13)
    random.Random(seed).shuffle(order)
    for start, stop in order:
        owns = frontier.own(start)
        if owns:
            frontier.feed(memoryview(DATA)[start:stop])
            frontier.disown()
        frontier.arrived(start, stop, crc64nvme(DATA[start:stop]))
    assert frontier.digest() == Digest.of(DATA)
    assert frontier.checksum("CRC-64/NVME") == Checksum.crc64nvme(crc64nvme(DATA))
    assert frontier.checksum("CRC32C") == Checksum.crc32c(crc32c(DATA))


def test_only_one_thread_owns_the_hash_and_only_at_the_frontier(fd: int) -> None:
    frontier = Frontier(fd, len(DATA))
    assert not frontier.own(10)
    assert frontier.own(0)
    assert not frontier.own(0)
    frontier.feed(memoryview(DATA)[:5])
    frontier.disown()
    assert not frontier.own(0)
    assert frontier.own(5)


def test_where_others_are_to_hash_nobody_owns_it(fd: int) -> None:
    assert not Frontier(fd, len(DATA), aside=lambda _: None, inline=lambda: False).own(0)


def test_a_digest_is_never_given_for_a_part(fd: int) -> None:
    frontier = Frontier(fd, len(DATA), kept=Checksum.crc32c(0))
    frontier.arrived(0, 100, crc64nvme(DATA[:100]))
    frontier.arrived(200, len(DATA), crc64nvme(DATA[200:]))
    for whole in (frontier.digest, lambda: frontier.checksum("CRC-64/NVME"), lambda: frontier.checksum("CRC32C")):
        with pytest.raises(AssertionError):
            whole()


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_hashed_aside_gives_the_digest_of_the_whole(fd: int, threads: int) -> None:
    os.pwrite(fd, DATA, 0)
    order = ranges(40)
    random.Random(threads).shuffle(order)
    with ThreadPoolExecutor(threads) as hashing, ThreadPoolExecutor(4) as fetching:
        frontier = Frontier(fd, len(DATA), aside=hashing.submit)
        list(fetching.map(lambda r: frontier.arrived(*r, 0), order))
        assert hashing.submit(frontier.digest).result(20) == Digest.of(DATA)


def test_who_gives_up_waits_for_the_one_that_reads_and_for_nobody_else(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    os.pwrite(fd, DATA, 0)
    gate = Gate(os.preadv)
    monkeypatch.setattr(os, "preadv", gate)
    with ThreadPoolExecutor(2) as threads:
        frontier = Frontier(fd, len(DATA))
        assert frontier.own(0)  # a thread that waits for its next bytes
        frontier.halt()
        frontier = Frontier(fd, len(DATA), aside=threads.submit)
        frontier.arrived(0, len(DATA), 0)
        assert gate.reached.wait(20)
        halting = threads.submit(frontier.halt)
        assert not wait([halting], timeout=0.2).done
        gate.open.set()
        halting.result(20)
        gate.reached.clear()
        frontier.arrived(0, len(DATA), 0)
    assert not gate.reached.is_set()


def test_a_file_that_comes_faster_than_it_is_hashed_lets_others_have_their_turn(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontier_module, "TURN_BYTES", 1_000_000)
    os.pwrite(fd, DATA, 0)
    turns = list[Callable[[], None]]()
    frontier = Frontier(fd, len(DATA), aside=turns.append)
    for span in ranges(10):
        frontier.arrived(*span, 0)
    taken = 0
    while turns:
        turns.pop()()
        taken += 1
    assert taken == 4
    assert frontier.digest() == Digest.of(DATA)


def test_what_cannot_be_read_back_is_said_when_the_digest_is_asked_for(fd: int) -> None:
    os.ftruncate(fd, 0)
    with ThreadPoolExecutor(1) as hashing:
        frontier = Frontier(fd, len(DATA), aside=hashing.submit)
        frontier.arrived(0, len(DATA), 0)
        for _ in range(2):
            with pytest.raises(OSError, match="the file ends at 0"):
                hashing.submit(frontier.digest).result(20)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_file_fetched_by_threads_is_complete_and_its_digest_right(fd: int, threads: int) -> None:
    work = job(MemoryOrigin(), fd)
    with ThreadPoolExecutor(threads) as pool:
        crcs = list(pool.map(lambda r: segment.fetch(work, *r), ranges(11)))
    assert work.frontier.digest() == Digest.of(DATA)
    assert os.pread(fd, len(DATA), 0) == DATA
    assert crcs == [crc64nvme(DATA[start:stop]) for start, stop in ranges(11)]
    assert work.meter.done == len(DATA)


def test_a_checksum_of_the_file_equals_the_one_of_the_fetch(fd: int) -> None:
    crc = segment.fetch(job(MemoryOrigin(), fd), 1_000, 2_000_000)
    assert segment.checksum(fd, 1_000, 2_000_000) == crc
    os.pwrite(fd, b"?", 1_500_000)
    assert segment.checksum(fd, 1_000, 2_000_000) != crc


def test_a_checksum_beyond_the_file_s_end_matches_nothing(fd: int) -> None:
    assert segment.checksum(fd, 0, len(DATA) + 1) == -1


def test_a_broken_connection_is_taken_up_at_the_byte_where_it_broke(fd: int) -> None:
    origin = Broken(after=900_000, breaks=3)
    work = job(origin, fd)
    segment.fetch(work, 0, len(DATA))
    starts = [start for verb, _, start, _ in origin.requests if verb == "open"]
    assert starts == [0, 900_000, 1_800_000, 2_700_000]
    assert work.frontier.digest() == Digest.of(DATA)


def test_a_connection_that_brings_nothing_is_given_up_after_so_many_attempts(fd: int) -> None:
    origin = Broken(after=0, breaks=99)
    with pytest.raises(OriginUnavailable):
        segment.fetch(job(origin, fd, attempts=2), 0, 100)
    assert len([verb for verb, *_ in origin.requests if verb == "open"]) == 2


def test_an_object_that_changed_is_not_asked_for_again(fd: int) -> None:
    origin = MemoryOrigin()
    work = job(origin, fd)
    origin.objects["k"] = b"new"
    with pytest.raises(Changed):
        segment.fetch(work, 0, 100)
    assert len([verb for verb, *_ in origin.requests if verb == "open"]) == 1


def test_a_job_that_is_given_up_stops_at_the_next_chunk(fd: int) -> None:
    work = job(MemoryOrigin(), fd)
    work.stop.set()
    with pytest.raises(Stopped):
        segment.fetch(work, 0, len(DATA))


def test_a_full_disk_is_no_fault_of_the_origin() -> None:
    full = os.open("/dev/full", os.O_RDWR)
    try:
        with pytest.raises(InsufficientSpace):
            segment.fetch(job(MemoryOrigin(), full), 0, 100)
    finally:
        os.close(full)


def test_many_files_at_once_share_the_threads_buffers_without_mixing(tmp_path: pathlib.Path) -> None:
    origin = MemoryOrigin()
    contents = {f"k{n}": objects.noise(n, 700_001) for n in range(8)}
    origin.objects.update(contents)
    done, lock = dict[str, bytes](), threading.Lock()

    def bring(key: str) -> None:
        seen = origin.head(key)
        assert seen is not None
        with open(tmp_path / key, "w+b") as file:
            work = Job(origin, seen, file.fileno(), Frontier(file.fileno(), seen.size), Meter(seen.size), 1)
            segment.fetch(work, 350_000, seen.size)
            segment.fetch(work, 0, 350_000)
            assert work.frontier.digest() == Digest.of(contents[key])
        with lock:
            done[key] = (tmp_path / key).read_bytes()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(bring, contents))
    assert done == contents


class Silent(MemoryOrigin):
    """The first connection brings so many bytes and then nothing, until it is told to go on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.quiet, self.go_on = after, threading.Event(), threading.Event()

    @contextmanager
    def open(self, obj: OriginObject, start: int, stop: int) -> Iterator[Body]:
        first = not any(verb == "open" for verb, *_ in self.requests)
        with super().open(obj, start, stop) as body:
            yield _SilentBody(self, body) if first else body


class _SilentBody:
    def __init__(self, origin: Silent, body: Body) -> None:
        self.origin, self.body, self.left = origin, body, origin.after

    def readinto(self, buffer: memoryview, /) -> int:
        if not self.left:
            self.origin.quiet.set()
            self.origin.go_on.wait(30)
            self.left = len(DATA)
        taken = self.body.readinto(buffer[: self.left])
        self.left -= taken
        return taken


def test_a_run_that_is_taken_over_is_gone_on_with_and_its_first_thread_writes_nothing_more(fd: int) -> None:
    origin = Silent(after=700_000)
    work, run = job(origin, fd), Run.of(0, len(DATA))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(segment.carry, work, run, 0)
        assert origin.quiet.wait(30)
        work.take_over(run)
        assert pool.submit(segment.carry, work, run, 1).result(30) == crc64nvme(DATA)
        assert work.frontier.digest() == Digest.of(DATA)
        os.pwrite(fd, bytes(100), 700_000)  # were it to write, this would be undone
        origin.go_on.set()
        with pytest.raises(Stopped):
            first.result(30)
    assert os.pread(fd, 100, 700_000) == bytes(100)
    assert work.meter.done == len(DATA)
    assert [start for verb, _, start, _ in origin.requests if verb == "open"] == [0, 700_000]


def test_a_thread_that_begins_after_its_run_was_taken_over_touches_nothing(fd: int) -> None:
    work, run = job(MemoryOrigin(), fd), Run.of(0, len(DATA))
    work.take_over(run)
    with pytest.raises(Stopped):
        segment.carry(work, run, 0)  # asked for before
    assert os.pread(fd, 100, 0) == bytes(100)
    assert segment.carry(work, run, 1) == crc64nvme(DATA)
    assert work.frontier.digest() == Digest.of(DATA)
