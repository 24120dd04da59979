"""What every origin promises (origin/port.py), asked of the twin and of every real one."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from awscrt.checksums import crc32c, crc64nvme

from hotshelf_daemon.objects import Checksum
from hotshelf_daemon.origin import Changed, Origin
from hotshelf_shared.errors import IntegrityError, OriginUnavailable
from tests import objects
from tests.conftest import BUCKET
from tests.daemon.origins.worlds import (
    FileWorld,
    GcsEmulatorWorld,
    HfWorld,
    HttpsWorld,
    MemoryWorld,
    S3World,
    ScriptedGcsWorld,
    World,
)
from tests.faults.scripted_gcs import ScriptedGcs
from tests.servers.certificates import certify
from tests.servers.gcs import GcsEmulator
from tests.servers.hub import Hub
from tests.servers.nginx import Nginx
from tests.servers.s3 import S3Origin as Server

ODD_KEYS = ["a b c", "plus+and&more", "ümläut/文件 夹.bin", "percent%20sign", "q?x=1#frag", "it's (1) [2] {3}!", "tilde~"]


UNSIGNED: dict[str, Any] = {"unsigned": True, "without": ("access_key_id", "secret_access_key")}


@pytest.fixture(
    scope="module",
    params=[
        "memory",
        "file",
        "seaweedfs",
        "moto",
        "moto, unsigned",
        "gcs",
        "gcs emulator",
        "hf",
        pytest.param("https", marks=pytest.mark.needs("nginx")),
    ],
)
def kept_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    def server(name: str) -> Server:
        return cast(Server, request.getfixturevalue(name))

    with contextlib.ExitStack() as stack:
        make: dict[str, Callable[[], World]] = {
            "memory": MemoryWorld,
            "file": lambda: FileWorld(tmp_path_factory.mktemp("files")),
            "seaweedfs": lambda: S3World(server("seaweedfs"), BUCKET, stack),
            "moto": lambda: S3World(server("moto"), BUCKET, stack),
            "gcs": lambda: ScriptedGcsWorld(stack.enter_context(ScriptedGcs())),
            "gcs emulator": lambda: GcsEmulatorWorld(stack.enter_context(GcsEmulator(tmp_path_factory.mktemp("gcs"))), stack),
            "hf": lambda: HfWorld(stack.enter_context(Hub(page_entries=2))),
            "https": lambda: https_world(tmp_path_factory.mktemp("web"), stack),
            "moto, unsigned": lambda: S3World(server("moto"), BUCKET, stack, public=True, **UNSIGNED),
        }
        yield make[request.param]()


def https_world(folder: pathlib.Path, stack: contextlib.ExitStack) -> HttpsWorld:
    certificate = certify(folder / "pem")
    return HttpsWorld(stack.enter_context(Nginx(folder, certificate=certificate)), certificate)


@pytest.fixture
def world(kept_world: World, prefix: str) -> World:
    """Empty: nothing lies below its base."""
    kept_world.base = prefix
    return kept_world


@pytest.fixture
def listed(world: World) -> World:
    """One that can be listed; what cannot says so, in `test_what_cannot_be_listed_says_what_can_be_done`."""
    if not world.can_list:
        pytest.skip("cannot be listed")
    return world


@pytest.fixture
def mutable(world: World) -> World:
    """One in which a key may come to hold something else; for the other see `test_hf.test_what_was_listed_keeps_its_bytes`."""
    if world.is_immutable:
        pytest.skip("keys never change")
    return world


def test_head_tells_key_size_and_a_version(world: World) -> None:
    world.put({"m/a": b"seven.."})
    seen = world.found("m/a")
    assert (seen.key, seen.size) == (f"{world.base}m/a", 7)
    assert seen.version


def test_head_of_nothing_is_none(world: World) -> None:
    world.put({"m/a": b"x"})
    for key in ("m/b", "m", "n", "m/a/b", "m/A"):
        assert world.head(key) is None


def test_the_version_stays_while_the_object_does_and_changes_with_it(world: World) -> None:
    world.put({"a": b"one", "b": b"one"})
    before = world.found("a")
    assert world.found("a") == before
    world.put({"a": b"two"})
    assert world.found("a").version != before.version


def test_a_listing_has_every_object_below_the_folder_and_no_other(listed: World) -> None:
    listed.put(dict.fromkeys(("m/m1/a", "m/m1/b/c/d", "m/m10/a", "m/m1.txt", "m/m", "other"), b"x"))
    assert listed.listed("m/m1") == ["m/m1/a", "m/m1/b/c/d"]
    assert listed.listed("m") == ["m/m", "m/m1.txt", "m/m1/a", "m/m1/b/c/d", "m/m10/a"]


def test_a_listing_has_no_folder_markers(listed: World) -> None:
    listed.put({"m/a": b"x"})
    listed.make_marker("m")
    listed.make_marker("m/empty")
    assert listed.listed("m") == ["m/a"]


def test_a_listing_of_nothing_is_empty(listed: World) -> None:
    listed.put({"m1/a": b"x"})
    assert listed.listed("m") == []


def test_a_listing_tells_what_head_tells(listed: World) -> None:
    listed.put({"m/a": b"x" * 10, "m/b": b""})
    assert sorted(listed.origin.list(f"{listed.base}m"), key=lambda obj: obj.key) == [listed.found("m/a"), listed.found("m/b")]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys_are_listed_and_read(world: World, key: str) -> None:
    world.put({f"m/{key}": key.encode()})
    assert not world.can_list or world.listed("m") == [f"m/{key}"]
    seen = world.found(f"m/{key}")
    assert world.bytes_of(seen, 0, seen.size) == key.encode()
    assert world.origin.read(seen.key, 100) == key.encode()


@pytest.mark.parametrize(("start", "stop"), [(0, 100_000), (0, 1), (99_999, 100_000), (33_333, 66_667), (50_000, 100_000)])
def test_a_range_is_exactly_those_bytes(world: World, start: int, stop: int) -> None:
    data = objects.noise(1, 100_000)
    world.put({"a": data})
    assert world.bytes_of(world.found("a"), start, stop, buffer_bytes=7_001) == data[start:stop]


def test_an_empty_object_opens_and_ends(world: World) -> None:
    world.put({"a": b""})
    seen = world.found("a")
    assert (seen.size, world.bytes_of(seen, 0, 0), world.origin.read(seen.key, 10)) == (0, b"", b"")


def test_another_version_than_the_one_listed_is_refused(mutable: World) -> None:
    mutable.put({"a": b"one"})
    before = mutable.found("a")
    mutable.put({"a": b"two"})
    for start, stop in ((0, 3), (1, 2)):
        with pytest.raises(Changed):
            mutable.bytes_of(before, start, stop)


def test_an_object_that_is_gone_has_changed(mutable: World) -> None:
    mutable.put({"a": b"one"})
    before = mutable.found("a")
    mutable.remove("a")
    with pytest.raises(Changed):
        mutable.bytes_of(before, 0, 3)


def test_a_small_object_is_read_whole_up_to_its_limit(world: World) -> None:
    world.put({"a": b"12345"})
    assert world.origin.read(f"{world.base}a", 5) == b"12345"
    assert world.origin.read(f"{world.base}none", 5) is None
    with pytest.raises(IntegrityError):
        world.origin.read(f"{world.base}a", 4)


def test_a_folder_read_as_an_object_is_none(world: World) -> None:
    world.put({"m/a": b"1"})
    assert world.origin.read(f"{world.base}m", 5) is None


def test_a_checksum_of_all_bytes_is_right_where_there_is_one(world: World) -> None:
    world.put({"a": b"weights" * 1_000})
    found, data = world.found("a"), b"weights" * 1_000
    assert world.origin.checksum(found) in (None, Checksum.crc64nvme(crc64nvme(data)), Checksum.crc32c(crc32c(data)))
    assert found.checksum in (None, world.origin.checksum(found))


def test_an_origin_that_does_not_answer_is_unavailable_and_worth_a_retry(world: World) -> None:
    world.put({"a": b"one"})
    seen = world.found("a")
    asks: list[Callable[[Origin], object]] = [
        lambda origin: origin.head(seen.key),
        lambda origin: [*origin.list(world.base.rstrip("/"))] if world.can_list else origin.head(seen.key),
        lambda origin: origin.read(seen.key, 10),
        lambda origin: origin.open(seen, 0, 3).__enter__(),
    ]
    with world.unreachable() as away:
        for ask in asks if away is not None else ():  # a folder of this machine always answers
            with pytest.raises(OriginUnavailable) as failure:
                ask(away)
            assert failure.value.retryable
