"""Who leaves in the middle of a download: nothing is written where it must not be, nothing is left open, nothing is lost."""

from __future__ import annotations

import asyncio
import os
import pathlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin import MemoryOrigin
from hotshelf_daemon.origin.port import Body
from hotshelf_daemon.store import blobs, durable
from tests import objects
from tests.daemon.test_desk import House, run
from tests.daemon.test_hand import Gate, cancelled

SEGMENT = 1 << 20


class HeldUp(MemoryOrigin):
    """Its first answer comes when it is let; `ended` says that whoever read it has gone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.ended = Gate(memoryview.__setitem__), threading.Event()

    @contextmanager
    def open(self, obj: OriginObject, start: int, stop: int) -> Iterator[Body]:
        with super().open(obj, start, stop) as body:
            try:
                yield body if self.first.reached.is_set() else _HeldUp(body, self.first)
            finally:
                if self.first.open.is_set():
                    self.ended.set()


class _HeldUp:
    def __init__(self, body: Body, gate: Gate) -> None:
        self._body, self._gate = body, gate

    def readinto(self, buffer: memoryview, /) -> int:
        self._gate(buffer, slice(0), b"")
        return self._body.readinto(buffer)


def ingests_open() -> list[str]:
    """Files below `ingest/` that this process has open."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:  # the listing's own
            continue
    return [link for link in links if "/ingest/" in link]


async def left_at(gate: Gate, house: House, source: str) -> None:
    """An acquire whose only client leaves while the gate holds it up."""
    leaving = asyncio.create_task(house.acquire(source))
    assert await asyncio.to_thread(gate.reached.wait, 20)
    leaving.cancel()
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(leaving, return_exceptions=True)
    assert leaving.cancelled()


@pytest.mark.parametrize("size", [1_000, 3 * SEGMENT], ids=["in one go", "in ranges"])
def test_bytes_that_come_after_everybody_left_go_into_no_other_file(tmp_path: pathlib.Path, size: int) -> None:
    async def story(house: House) -> None:
        held_up = HeldUp()
        house.preparer._directory._origin = held_up  # type: ignore[attr-defined]
        held_up.objects["m/a.safetensors"] = objects.noise("m", size)
        leaving = asyncio.create_task(house.acquire("s3://b/m"))
        assert await asyncio.to_thread(held_up.first.reached.wait, 20)
        await cancelled(leaving)
        assert ingests_open() == []
        others = [(tmp_path / f"other-{n}").open("wb+") for n in range(20)]  # they get the numbers that are free by now
        held_up.first.open.set()
        assert await asyncio.to_thread(held_up.ended.wait, 20)
        assert [other.read() for other in others] == [b""] * 20
        for other in others:
            other.close()
        answer = await house.acquire("s3://b/m")
        assert objects.read(tmp_path / "store" / answer.path) == {"a.safetensors": objects.noise("m", size)}

    run(tmp_path, story, fetch={"segment_bytes": SEGMENT, "connections": 4})


@pytest.mark.parametrize("size", [1_000, 3 * SEGMENT], ids=["in one go", "in ranges"])
def test_a_file_that_is_being_made_when_everybody_leaves_is_closed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    gate = Gate(blobs.open_ingest)
    monkeypatch.setattr(blobs, "open_ingest", gate)

    async def story(house: House) -> None:
        source = house.put("m", size)
        await left_at(gate, house, source)
        assert ingests_open() == []
        await house.acquire(source)

    run(tmp_path, story, fetch={"segment_bytes": SEGMENT})


def test_a_commit_that_has_begun_is_carried_to_its_end(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(durable.rename_new)
    monkeypatch.setattr(durable, "rename_new", gate)

    async def story(house: House) -> None:
        source = house.put("m")
        await left_at(gate, house, source)
        await house.ingests.drain()
        assert os.listdir(tmp_path / "store" / "ingest") == []
        served = house.origin.bytes_served()
        answer = await house.acquire(source)
        assert objects.read(tmp_path / "store" / answer.path) == {"a.safetensors": objects.noise("m", 1_000)}
        assert house.origin.bytes_served() == served

    run(tmp_path, story)


def test_a_sync_that_fails_after_everybody_left_leaves_nothing_that_is_trusted(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = durable.seal

    def fails(fd: int, *, keep: bool) -> None:
        os.close(fd)
        raise OSError(5, "Input/output error")

    gate = Gate(fails)
    monkeypatch.setattr(durable, "seal", gate)

    async def story(house: House) -> None:
        source = house.put("m", 3 * SEGMENT)
        await left_at(gate, house, source)
        monkeypatch.setattr(durable, "seal", real)
        served = house.origin.bytes_served()
        answer = await house.acquire(source)
        assert house.origin.bytes_served() - served == 3 * SEGMENT
        assert objects.read(tmp_path / "store" / answer.path) == {"a.safetensors": objects.noise("m", 3 * SEGMENT)}

    run(tmp_path, story, fetch={"segment_bytes": SEGMENT})
