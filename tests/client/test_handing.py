"""A worker hands in what it built, through `Client` and `AsyncClient`; last, to a real daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from hotshelf import archive
from hotshelf.aio import AsyncClient
from hotshelf.client import Client
from hotshelf.transport import MemoryTransport, Reply, Request
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import Conflict, HotshelfError, IntegrityError, InvalidRequest, MissingBlobs, NotFound
from hotshelf_shared.recipe import Recipe
from tests import objects
from tests.daemon_process import Daemon

from .fakes import FakeDaemon

DATA = b"weights"
BLOB = f"/v1/blobs/{Digest.of(DATA)}"
RECIPE = Recipe(base=Digest.of(b"base"))
AT = f"/v1/pipelines/{RECIPE.key}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


def test_whether_a_blob_is_held(client: Client, daemon: FakeDaemon) -> None:
    assert client.has_blob(Digest.of(DATA)) is False
    daemon.looks["HEAD", BLOB] = lambda _: Reply(headers={"X-Hotshelf-Size": "7"})
    assert client.has_blob(Digest.of(DATA)) is True
    with pytest.raises(InvalidRequest):
        client.has_blob("../status")


def test_a_file_is_handed_in_once(client: Client, daemon: FakeDaemon, file: Path) -> None:
    daemon.looks["PUT", BLOB] = lambda _: Reply(None, status=201)
    assert client.put_blob(Digest.of(DATA), file) is True
    assert daemon.asked("PUT", BLOB).data == DATA
    daemon.looks["PUT", BLOB] = lambda _: Reply(None, status=204)
    assert client.put_blob(Digest.of(DATA), str(file)) is False


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_what_is_no_file_is_refused_by_its_name(client: Client, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match=str(tmp_path)):
        client.put_blob(Digest.of(DATA), tmp_path / name)


def test_what_the_daemon_says_to_a_blob_is_raised(client: Client, daemon: FakeDaemon, file: Path) -> None:
    def refuse(_: Request) -> Reply:
        raise IntegrityError("other bytes")

    daemon.looks["PUT", BLOB] = refuse
    with pytest.raises(IntegrityError, match="other bytes"):
        client.put_blob(Digest.of(DATA), file)


def test_a_pipeline_is_sent_as_it_was_given(client: Client, daemon: FakeDaemon) -> None:
    daemon.looks["PUT", AT] = lambda _: Reply({"key": RECIPE.key}, status=201)
    manifest = objects.manifest_of({"a": DATA})
    assert client.put_pipeline(RECIPE.key, RECIPE, manifest, {"torch": "2"}) == {"key": RECIPE.key}
    sent = {"recipe": RECIPE.to_json(), "manifest": manifest.to_json(), "build": {"torch": "2"}}
    assert daemon.asked("PUT", AT).body == sent
    client.put_pipeline(RECIPE.key, RECIPE.to_json(), manifest.to_json())
    del sent["build"]
    assert daemon.asked("PUT", AT).body == sent


@pytest.mark.parametrize("error", [MissingBlobs("two are", missing=["sha256:12"]), Conflict("another was first")])
def test_what_the_daemon_says_to_a_pipeline_is_raised(client: Client, daemon: FakeDaemon, error: HotshelfError) -> None:
    def refuse(_: Request) -> Reply:
        raise error

    daemon.looks["PUT", AT] = refuse
    with pytest.raises(type(error)) as caught:
        client.put_pipeline(RECIPE.key, RECIPE, objects.manifest_of({"a": DATA}))
    assert caught.value.details == error.details


def test_a_pipeline_is_shown_or_not_found(client: Client, daemon: FakeDaemon) -> None:
    with pytest.raises(NotFound):
        client.pipeline(RECIPE.key)
    daemon.looks["GET", AT] = lambda _: Reply({"key": RECIPE.key})
    assert client.pipeline(RECIPE.key) == {"key": RECIPE.key}
    with pytest.raises(InvalidRequest):
        client.pipeline("../status")


def test_it_is_the_same_over_memory(file: Path) -> None:
    def answer(request: Request) -> Reply:
        if request.method == "HEAD":
            return Reply(status=404, headers={"X-Hotshelf-Code": "not_found"})
        return Reply(None, status=201) if request.data == DATA else Reply({"saw": request.path})

    client = Client(transport=MemoryTransport(answer))
    assert client.has_blob(Digest.of(DATA)) is False
    assert client.put_blob(Digest.of(DATA), file) is True
    assert client.pipeline(RECIPE.key) == {"saw": AT}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["Client", "AsyncClient"])
def test_what_one_worker_hands_in_another_leases(
    make_daemon: Callable[..., Daemon], tmp_path: Path, asynchronous: bool
) -> None:
    daemon = make_daemon()
    tree = objects.model("handed in", unet=5 << 20)
    objects.write(tmp_path / "built", tree)
    manifest = objects.manifest_of(tree)

    def plain() -> None:
        client = Client(daemon.socket, daemon.store)
        for path, entry in manifest.items():
            assert client.put_blob(entry.digest, tmp_path / "built" / path)
            assert client.has_blob(entry.digest)
            assert not client.put_blob(entry.digest, tmp_path / "built" / path)
        told = client.put_pipeline(RECIPE.key, RECIPE, manifest, {"seconds": 1.5})
        assert client.pipeline(RECIPE.key) == told

    async def awaited() -> None:
        client = AsyncClient(daemon.socket, daemon.store)
        for path, entry in manifest.items():
            assert await client.put_blob(entry.digest, tmp_path / "built" / path)
            assert await client.has_blob(entry.digest)
        told = await client.put_pipeline(RECIPE.key, RECIPE, manifest, {"seconds": 1.5})
        assert await client.pipeline(RECIPE.key) == told

    if asynchronous:
        asyncio.run(awaited())
    else:
        plain()
    with Client(daemon.socket, daemon.store).acquire(f"pipeline:{RECIPE.key}") as lease:
        assert objects.read(lease.path) == tree


# ---- compile caches

BUNDLE_AT = "/v1/bundles/cpu-x86_64/9f2c"


def test_an_archive_is_handed_in_and_bound(client: Client, daemon: FakeDaemon, file: Path) -> None:
    daemon.looks["PUT", BLOB] = lambda _: Reply(None, status=201)
    daemon.looks["PUT", BUNDLE_AT] = lambda _: Reply({"digest": Digest.of(DATA)}, status=201)
    assert client.put_bundle("cpu-x86_64", "9f2c", file) == {"digest": Digest.of(DATA)}
    assert daemon.asked("PUT", BLOB).data == DATA
    assert daemon.asked("PUT", BUNDLE_AT).body == {"digest": Digest.of(DATA), "size": len(DATA)}


def test_an_archive_that_is_held_is_not_sent_again(client: Client, daemon: FakeDaemon, file: Path) -> None:
    daemon.looks["HEAD", BLOB] = lambda _: Reply(headers={"X-Hotshelf-Size": "7"})
    daemon.looks["PUT", BUNDLE_AT] = lambda _: Reply({}, status=200)
    assert client.put_bundle("cpu-x86_64", "9f2c", file) == {}


@pytest.mark.parametrize(("environment", "graph"), [("..", "g"), ("e", "a/b"), ("", "g"), ("e", "g%2f"), ("e", "g\n")])
def test_keys_that_are_none_are_refused_before_anything_is_sent(
    client: Client, daemon: FakeDaemon, file: Path, environment: str, graph: str
) -> None:
    with pytest.raises(InvalidRequest):
        client.put_bundle(environment, graph, file)
    with pytest.raises(InvalidRequest):
        client.bundle(environment, graph)


@pytest.mark.parametrize("environment", [None, "cpu-x86_64"])
def test_bundles_are_listed_of_one_environment_or_of_all(client: Client, daemon: FakeDaemon, environment: str | None) -> None:
    at = "/v1/bundles" if environment is None else f"/v1/bundles/{environment}"
    daemon.looks["GET", at] = lambda _: Reply({"bundles": [{"graph_key": "9f2c"}]})
    assert client.bundles(environment) == [{"graph_key": "9f2c"}]
    daemon.looks["GET", at] = lambda _: Reply({"bundles": None})
    with pytest.raises(HotshelfError, match="has no bundles"):
        client.bundles(environment)
    with pytest.raises(InvalidRequest):
        client.bundles("../status")


def test_a_compile_cache_goes_from_one_worker_to_the_next(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """On a real daemon, from folder to folder."""
    daemon = make_daemon()
    cache = {"ab/kernel.so": b"k" * 5_000, "fxgraph/g": b"{}"}
    packed = archive.pack(objects.write(tmp_path / "cache", cache), tmp_path / "archive")
    client = Client(socket=daemon.socket, store=daemon.store)
    with pytest.raises(NotFound):
        client.bundle("cpu-x86_64", "9f2c")
    other = AsyncClient(socket=daemon.socket)
    told = asyncio.run(other.put_bundle("cpu-x86_64", "9f2c", tmp_path / "archive"))
    assert told == client.bundle("cpu-x86_64", "9f2c") == asyncio.run(other.bundle("cpu-x86_64", "9f2c"))
    listed = {name: part for name, part in told.items() if name != "path"}
    assert client.bundles() == client.bundles("cpu-x86_64") == asyncio.run(other.bundles("cpu-x86_64")) == [listed]
    assert client.bundles("cpu-aarch64") == asyncio.run(other.bundles("cpu-aarch64")) == []
    with client.acquire("bundle:cpu-x86_64/9f2c") as lease:
        assert lease.kind == "bundle"
        assert lease.files["archive"] == packed
        archive.unpack(lease.path / "archive", tmp_path / "warm", digest=lease.files["archive"].digest)
    assert objects.read(tmp_path / "warm") == cache
