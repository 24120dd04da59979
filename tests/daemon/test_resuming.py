"""What a resumed download makes of its journal, and what it makes of the checksum that the origin keeps."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from awscrt.checksums import crc32c, crc64nvme

from hotshelf_daemon.index import ingests
from hotshelf_daemon.index.ingests import SegmentRow
from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin import MemoryOrigin
from hotshelf_daemon.origin.port import Body
from hotshelf_shared.errors import AccessDenied, IntegrityError
from tests import objects
from tests.daemon.test_desk import House, run
from tests.daemon.test_hand import Gate

MIB = 1 << 20
DATA = objects.noise("resumed", 12 * MIB)
SOURCE = "s3://b/m"


class Breaking(MemoryOrigin):
    """Does not give the file's end away until it is `healed`. `asking` is called when it is asked for a checksum."""

    def __init__(self, asking: Any = lambda: None) -> None:
        super().__init__()
        self.healed, self._asking = False, asking
        self.objects["m/a.safetensors"] = DATA

    @contextmanager
    def open(self, obj: OriginObject, start: int, stop: int) -> Iterator[Body]:
        if stop == obj.size and not self.healed:
            raise AccessDenied("not yet")
        with super().open(obj, start, stop) as body:
            yield body

    def checksum(self, obj: OriginObject) -> Checksum | None:
        self._asking()
        return super().checksum(obj)


def content(house: House, path: str) -> bytes:
    return (pathlib.Path(house.settings.store) / path / "a.safetensors").read_bytes()


def run_on(folder: pathlib.Path, origin: MemoryOrigin, story: Any) -> None:
    async def within(house: House) -> None:
        house.preparer._directory._origin = origin  # type: ignore[attr-defined]
        await story(house)

    run(folder, within, fetch={"segment_bytes": 4 * MIB, "connections": 1})


RIGHT = [Checksum.crc64nvme(crc64nvme(DATA)), Checksum.crc32c(crc32c(DATA))]
WRONG = [Checksum.crc64nvme(1), Checksum.crc32c(1)]


@pytest.mark.parametrize("kept", RIGHT, ids=lambda kept: kept.algorithm)
@pytest.mark.parametrize("row", [(3 * MIB, 5 * MIB), (MIB, 2 * MIB), (0, 6 * MIB), (5 * MIB, 12 * MIB)])
def test_a_row_of_an_earlier_way_to_cut_the_file_does_no_harm(
    tmp_path: pathlib.Path, row: tuple[int, int], kept: Checksum
) -> None:
    """Its bytes were lost in a power cut, and came again in other ranges."""
    origin = Breaking()
    origin.checksums["m/a.safetensors"] = kept

    async def story(house: House) -> None:
        with pytest.raises(AccessDenied):
            await house.acquire(SOURCE)
        (ingest,) = house.index.read(lambda db: db.execute("SELECT id FROM ingests").fetchone())
        stale = SegmentRow(*row, crc64nvme(DATA[slice(*row)]))
        await house.index.write(lambda db: ingests.journal(db, ingest, stale))
        origin.healed = True
        assert content(house, (await house.acquire(SOURCE)).path) == DATA

    run_on(tmp_path, origin, story)


@pytest.mark.parametrize("kept", WRONG, ids=lambda kept: kept.algorithm)
def test_what_is_not_what_the_origin_keeps_is_refused_and_fetched_anew(tmp_path: pathlib.Path, kept: Checksum) -> None:
    origin = Breaking()
    origin.healed, origin.checksums["m/a.safetensors"] = True, kept

    async def story(house: House) -> None:
        with pytest.raises(IntegrityError, match=kept.algorithm):
            await house.acquire(SOURCE)
        assert origin.bytes_served() == 2 * len(DATA)
        del origin.checksums["m/a.safetensors"]
        assert content(house, (await house.acquire(SOURCE)).path) == DATA
        assert origin.bytes_served() == 3 * len(DATA)

    run_on(tmp_path, origin, story)


def test_a_checksum_that_was_told_unasked_is_not_asked_for_and_holds_small_files_too(tmp_path: pathlib.Path) -> None:
    origin = Breaking()
    origin.healed = True
    origin.objects = {"m/a.safetensors": DATA, "m/small.txt": b"small", "n/small.txt": b"small"}
    origin.checksums = {key: Checksum.crc32c(crc32c(data)) for key, data in origin.objects.items()}

    async def story(house: House) -> None:
        assert content(house, (await house.acquire(SOURCE)).path) == DATA
        assert "checksum" not in {verb for verb, *_ in origin.requests}
        origin.checksums["n/small.txt"] = Checksum.crc32c(1)
        with pytest.raises(IntegrityError, match=r"n/small.txt do not match the CRC32C"):
            await house.acquire("s3://b/n")
        assert [key for verb, key, *_ in origin.requests if verb == "open"].count("n/small.txt") == 2

    run_on(tmp_path, origin, story)


def test_an_origin_that_fails_to_tell_its_checksum_is_fetched_from_all_the_same(tmp_path: pathlib.Path) -> None:
    def asking() -> None:
        raise RuntimeError("nobody expects this")

    origin = Breaking(asking)
    origin.healed = True

    async def story(house: House) -> None:
        assert content(house, (await house.acquire(SOURCE)).path) == DATA

    run_on(tmp_path, origin, story)


def test_an_origin_that_does_not_say_its_checksum_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    gate = Gate(lambda: None)
    origin = Breaking(gate)
    origin.healed = True

    async def story(house: House) -> None:
        assert content(house, (await house.acquire(SOURCE)).path) == DATA
        assert gate.reached.is_set()
        assert not gate.open.is_set()
        gate.open.set()

    run_on(tmp_path, origin, story)
