"""Files into the page cache: what is cold is read, what is warm is not, and never more than fits."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from hotshelf import Warmed
from hotshelf.warming import Span, fitting, pages, reading, warm
from hotshelf_shared import memory
from hotshelf_shared.errors import AccessDenied, HotshelfError, IntegrityError
from hotshelf_shared.wire import Progress

from .page_cache import cached_bytes, written

MIB = 1 << 20


def sizes(*paths: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in paths}


def plenty(_keep: int) -> float:
    return float("inf")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a question may take long; what is then taken for missing would be read again, which costs little."""
    monkeypatch.setattr(pages, "PROBE_MOST_S", 60)


@pytest.mark.usefixtures("cold_disk")
class TestColdFiles:
    def test_are_in_the_page_cache_afterwards(self, tmp_path: Path) -> None:
        files = [
            written(tmp_path / "unet", 9 * MIB + 5),
            written(tmp_path / "config.json", 300),
            written(tmp_path / "empty", 0),
        ]
        assert cached_bytes(files[0]) == 0
        done = warm(sizes(*files))
        assert (done.read_bytes, done.cached_bytes, done.skipped_bytes, done.short_of) == (9 * MIB + 305, 0, 0, None)
        assert cached_bytes(files[0]) >= 9 * MIB + 5
        assert cached_bytes(files[1]) >= 300

    @pytest.mark.usefixtures("patient")
    def test_are_read_once(self, tmp_path: Path) -> None:
        file = written(tmp_path / "unet", 9 * MIB)
        warm(sizes(file))
        again = warm(sizes(file))
        assert (again.read_bytes, again.cached_bytes) == (0, 9 * MIB)
        told = list[Progress]()
        warm(sizes(file), on_progress=told.append)
        assert [(one.bytes_done, one.bytes_total) for one in told] == [(9 * MIB, 9 * MIB)]

    def test_are_read_again_when_it_took_long_to_ask(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = written(tmp_path / "unet", 9 * MIB)
        warm(sizes(file))
        monkeypatch.setattr(pages, "PROBE_MOST_S", 0)
        assert warm(sizes(file)).read_bytes == 9 * MIB

    def test_are_read_where_they_are_cold_only(self, tmp_path: Path) -> None:
        file = written(tmp_path / "unet", 64 * MIB)
        warm(sizes(file))
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 16 * MIB, 12 * MIB, os.POSIX_FADV_DONTNEED)
        assert cached_bytes(file, 16 * MIB, 28 * MIB) < 12 * MIB
        done = warm(sizes(file))
        assert 12 * MIB <= done.read_bytes < 64 * MIB
        assert done.cached_bytes == 64 * MIB - done.read_bytes
        assert cached_bytes(file, 16 * MIB, 28 * MIB) == 12 * MIB

    def test_are_read_as_far_as_they_fit_the_biggest_first(self, tmp_path: Path) -> None:
        small, big = written(tmp_path / "a-small", 8 * MIB), written(tmp_path / "big", 16 * MIB)
        done = warm(sizes(small, big), room=lambda _keep: 16 * MIB)
        assert (done.read_bytes, done.skipped_bytes, done.short_of) == (16 * MIB, 8 * MIB, "memory")
        assert cached_bytes(big) == 16 * MIB
        assert cached_bytes(small) < MIB  # nothing but what asking costs

    def test_are_left_when_there_is_no_memory(self, tmp_path: Path) -> None:
        file = written(tmp_path / "unet", 8 * MIB)
        done = warm(sizes(file), room=lambda _keep: 0)
        assert (done.read_bytes, done.skipped_bytes, done.short_of) == (0, 8 * MIB, "memory")
        assert cached_bytes(file) < MIB

    @pytest.mark.usefixtures("patient")
    def test_are_held_against_the_room_that_is_left_beside_the_warm_ones(self, tmp_path: Path) -> None:
        there = written(tmp_path / "there", 8 * MIB)
        warm(sizes(there))
        kept = list[int]()
        warm(sizes(there), room=lambda keep: kept.append(keep) or 0.0)
        assert kept == [8 * MIB]

    def test_are_told_of_as_they_come(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hotshelf.warming.TELL_S", 0)
        told = list[Progress]()
        warm(sizes(written(tmp_path / "cold", 40 * MIB)), on_progress=told.append, source="sdxl")
        done = [one.bytes_done for one in told]
        assert done == sorted(done)
        assert (done[-1], told[-1].eta_s) == (40 * MIB, 0)
        assert {(one.phase, one.source, one.bytes_total) for one in told} == {("warm", "sdxl", 40 * MIB)}
        assert len(told) > 5

    def test_end_at_the_total_when_not_all_fit(self, tmp_path: Path) -> None:
        told = list[Progress]()
        warm(sizes(written(tmp_path / "unet", 8 * MIB)), room=lambda _keep: 4 * MIB, on_progress=told.append)
        assert (told[-1].bytes_done, told[-1].bytes_total) == (4 * MIB, 4 * MIB)

    def test_are_left_when_time_is_up(self, tmp_path: Path) -> None:
        file = written(tmp_path / "unet", 8 * MIB)
        done = warm(sizes(file), until=time.monotonic())
        assert (done.read_bytes, done.skipped_bytes, done.short_of) == (0, 8 * MIB, "time")
        assert cached_bytes(file) == 0

    def test_that_take_too_long_are_not_waited_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hanging, end = threading.Event(), threading.Event()

        def hang(*_: object) -> None:
            hanging.set()
            end.wait(60)

        monkeypatch.setattr(reading, "_read", hang)
        file = written(tmp_path / "unet", 8 * MIB)
        done = warm(sizes(file), until=time.monotonic() + 0.2)
        end.set()
        assert hanging.is_set()
        assert (done.read_bytes, done.short_of) == (0, "time")

    def test_are_let_be_when_the_caller_has_enough(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hotshelf.warming.TELL_S", 0)

        def enough(_: Progress) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            warm(sizes(written(tmp_path / "unet", 8 * MIB)), on_progress=enough)

    def test_are_all_read_where_the_file_system_cannot_tell(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pages, "_NOWAIT", None)
        file = written(tmp_path / "unet", 8 * MIB)
        assert [warm(sizes(file)).read_bytes for _ in range(2)] == [8 * MIB, 8 * MIB]
        monkeypatch.setattr(pages, "file_system_of", lambda _path: "tmpfs")
        assert warm(sizes(file)).cached_bytes == 8 * MIB  # where else could it be


class TestAFileThatCannotBeRead:
    def test_is_named_when_it_is_gone(self, tmp_path: Path) -> None:
        with pytest.raises(IntegrityError, match=r"unet cannot be read: No such file") as raised:
            warm({str(tmp_path / "unet"): 5})
        assert "hotshelf verify" in raised.value.hint

    def test_is_named_when_it_has_another_size(self, tmp_path: Path) -> None:
        (tmp_path / "unet").write_bytes(b"four")
        with pytest.raises(IntegrityError, match="has 4 bytes, not 5"):
            warm({str(tmp_path / "unet"): 5})

    def test_is_denied_when_it_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(AccessDenied, match="unet may not be read here"):
            warm({str(tmp_path / "unet"): 5})

    @pytest.mark.parametrize("code", [5, 116])
    def test_is_named_when_its_disk_fails_amid_it(self, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> int:
            raise OSError(code, os.strerror(code))

        (tmp_path / "unet").write_bytes(bytes(10))
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(IntegrityError, match="unet cannot be read") as raised:
            warm({str(tmp_path / "unet"): 10})
        assert isinstance(raised.value, HotshelfError)

    def test_is_named_when_it_was_cut_meanwhile(self, tmp_path: Path) -> None:
        file = tmp_path / "unet"
        file.write_bytes(bytes(10))
        with pytest.raises(IntegrityError, match="ends at 10 bytes"):
            reading.read([Span(str(file), 0, 20)], until=float("inf"), tell=lambda _: None)


def test_pieces_are_shared_by_threads_and_stop_at_the_room() -> None:
    missing = [Span("big", 4 * MIB, 200 * MIB), Span("small", 0, 10)]
    whole = fitting(missing, float("inf"))
    assert [(one.path, one.start // MIB, -(-one.stop // MIB)) for one in whole] == [
        ("big", 4, 68), ("big", 68, 132), ("big", 132, 196), ("big", 196, 200), ("small", 0, 1),
    ]  # fmt: skip
    assert sum(one.size for one in whole) == 196 * MIB + 10
    assert fitting(missing, 65 * MIB) == [Span("big", 4 * MIB, 68 * MIB), Span("big", 68 * MIB, 69 * MIB)]
    assert fitting(missing, 0) == []


class TestMemory:
    """Read below a root of the test's own, as the kernel writes it."""

    def machine(self, root: Path, available_kb: int, cgroup: str) -> None:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {available_kb} kB\n")
        (root / "proc/self/cgroup").write_text(cgroup)

    def group(self, root: Path, path: str, **files: str) -> None:
        (root / "sys/fs/cgroup" / path).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (root / "sys/fs/cgroup" / path / f"memory.{name}").write_text(text)

    def test_without_limits_is_what_the_machine_has_less_a_tenth(self, tmp_path: Path) -> None:
        self.machine(tmp_path, 1000, "0::/\n")
        self.group(tmp_path, "", max="max\n", current="5\n")
        assert memory.room(0, root=str(tmp_path)) == 921_600
        assert memory.room(900_000, root=str(tmp_path)) == 21_600
        assert memory.room(2_000_000, root=str(tmp_path)) == 0

    def test_is_the_least_that_any_group_leaves(self, tmp_path: Path) -> None:
        self.machine(tmp_path, 1000, "0::/pod/worker\n")
        self.group(tmp_path, "pod/worker", max="max\n", current="5\n")
        self.group(tmp_path, "pod", max="500000\n", current="400000\n", stat="anon 9\ninactive_file 60000\nactive_file 40000\n")
        assert memory.room(0, root=str(tmp_path)) == 180_000
        # Of its 100,000 bytes of files it keeps what is to stay; others' pages are on others' account.
        assert memory.room(50_000, root=str(tmp_path)) == 130_000
        assert memory.room(600_000, root=str(tmp_path)) == 80_000

    def test_knows_version_one_in_a_container_that_sees_its_own_group_alone(self, tmp_path: Path) -> None:
        self.machine(tmp_path, 1000, "5:cpu:/x\n4:memory,hugetlb:/docker/abc\n0::/\n")
        self.group(tmp_path, "memory", limit_in_bytes="300000\n", usage_in_bytes="100000\n", stat="total_active_file 50000\n")
        assert memory.room(0, root=str(tmp_path)) == 225_000

    def test_that_nobody_tells_of_has_no_end(self, tmp_path: Path) -> None:
        assert memory.room(5, root=str(tmp_path)) == float("inf")

    def test_of_this_machine_is_told(self) -> None:
        assert 0 < memory.room(0) < float("inf")


def test_what_was_done_is_a_value() -> None:
    done = Warmed(5, 3, 2, 0.25, "memory")
    assert done.to_json() == {
        "read_bytes": 5, "cached_bytes": 3, "skipped_bytes": 2, "seconds": 0.25, "short_of": "memory"
    }  # fmt: skip
