"""`acquire(…, warm=True)`: a lease whose files are in memory, and what is said when they are not."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from hotshelf import warming
from hotshelf.aio import AsyncClient
from hotshelf.client import Client
from hotshelf.transport import Reply, Request
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import HotshelfError, IntegrityError
from hotshelf_shared.wire import Progress

from .conftest import Run
from .fakes import PATIENCE_S, FakeDaemon, UnixServer
from .page_cache import cached_bytes, drop

MIB = 1 << 20
pytestmark = pytest.mark.usefixtures("cold_disk")


def publish(daemon: FakeDaemon, *, times: int = 1, **sources: dict[str, bytes]) -> list[Path]:
    """The next acquires are granted these trees, on disk alone; equal contents are one blob. The blobs' paths."""
    blobs = dict[str, Path]()
    leases = []
    for source, files in sources.items():
        lease = daemon.lease(source)
        lease["files"] = []
        for path, content in files.items():
            digest = Digest.of(content)
            blob = blobs[digest] = daemon.store / "blobs" / digest.hex
            blob.parent.mkdir(exist_ok=True)
            if not blob.exists():
                blob.write_bytes(content)
                drop(blob)
            link = daemon.store / lease["path"] / path
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(blob, link.parent))
            lease["files"].append({"path": path, "digest": digest, "size": len(content)})
        leases.append(lease)

    def grant(request: Request) -> Reply:
        for lease in leases:
            daemon.leases[lease["id"]] = request.body.get("client")
        event = {"leases": leases} if "sources" in request.body else {"lease": leases[0]}
        return Reply(lines=[{"event": "ready", **event}])

    daemon.acquires += [grant] * times
    return list(blobs.values())


def model(*, unet: int = 9 * MIB, seed: bytes = b"unet") -> dict[str, bytes]:
    return {"unet.safetensors": seed * (unet // len(seed)), "config.json": b"{}"}


def test_the_files_are_in_the_page_cache_and_the_lease_says_so(client: Client, daemon: FakeDaemon) -> None:
    unet, _ = publish(daemon, sdxl=model())
    assert cached_bytes(unet) == 0
    told = list[Progress]()
    with client.acquire("sdxl", warm=True, on_progress=told.append) as lease:
        assert lease.warmed is not None
        assert (lease.warmed.read_bytes, lease.warmed.skipped_bytes, lease.warmed.short_of) == (9 * MIB + 2, 0, None)
        assert cached_bytes(unet) == 9 * MIB
    assert [(one.phase, one.bytes_done, one.source) for one in told][-1] == ("warm", 9 * MIB + 2, "sdxl")
    assert daemon.leases == {}


def test_without_it_nothing_is_read(client: Client, daemon: FakeDaemon) -> None:
    unet, _ = publish(daemon, sdxl=model())
    with client.acquire("sdxl") as lease:
        assert lease.warmed is None
    assert cached_bytes(unet) == 0


def test_what_several_sources_share_is_read_once(client: Client, daemon: FakeDaemon) -> None:
    publish(daemon, base=model(), turbo={**model(), "vae.safetensors": b"vae!" * MIB})
    with client.acquire(["base", "turbo"], warm=True) as leases:
        assert leases.warmed is not None
        assert leases.warmed.read_bytes == 13 * MIB + 2
        assert {lease.warmed for lease in leases} == {leases.warmed}


def test_a_deadline_ends_the_reading_and_not_the_lease(
    client: Client, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(daemon, sdxl=model())
    end = threading.Event()
    monkeypatch.setattr(warming.reading, "_read", lambda *_: end.wait(PATIENCE_S))
    with client.acquire("sdxl", warm=True, timeout=1) as lease:
        end.set()
        assert lease.warmed is not None
        assert (lease.warmed.short_of, lease.warmed.skipped_bytes) == ("time", 9 * MIB + 2)
        assert lease.id in daemon.leases


def test_a_file_that_cannot_be_read_is_named_and_nothing_stays_held(client: Client, daemon: FakeDaemon) -> None:
    unet, _ = publish(daemon, sdxl=model())
    unet.write_bytes(b"cut")
    with pytest.raises(IntegrityError, match=r"unet\.safetensors has 3 bytes"):
        client.acquire("sdxl", warm=True)
    assert daemon.leases == {}


def test_the_lease_is_renewed_meanwhile(client: Client, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(daemon, sdxl=model())
    renewed = list[dict[str, Any]]()

    def read(span: warming.Span, *_: object) -> None:
        if span.path.endswith("unet.safetensors"):
            renewed.append(daemon.renewals.get(timeout=PATIENCE_S))

    monkeypatch.setattr(warming.reading, "_read", read)
    with client.acquire("sdxl", warm=True) as lease:
        assert lease.id in renewed[0]["ids"]


def test_what_is_detached_is_held_by_the_keeper_until_it_is_warm(client: Client, daemon: FakeDaemon) -> None:
    publish(daemon, sdxl=model(), times=2)
    lease = client.acquire("sdxl", warm=True, hold_s=3600)
    kept, detached = daemon.asked("POST", "/v1/leases").body, daemon.asked("POST", "/v1/leases").body
    assert (kept.get("client"), kept.get("hold_s")) == (client.keeper.client, None)
    assert (detached.get("client"), detached.get("hold_s")) == (None, 3600)
    assert lease.warmed is not None
    assert lease.warmed.read_bytes == 9 * MIB + 2


def test_a_source_that_changed_while_it_was_read_is_not_called_warm(client: Client, daemon: FakeDaemon) -> None:
    publish(daemon, sdxl=model())
    publish(daemon, other=model(seed=b"else"))
    assert client.acquire("sdxl", warm=True, detached=True).warmed is None


def test_a_task_that_is_cancelled_reads_no_further(
    server: UnixServer, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(daemon, sdxl=model())
    monkeypatch.setattr(warming, "TELL_S", 0)
    began, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    read = warming.reading.read

    def slowly(spans: Any, **given: Any) -> int:
        began.set()
        go_on.wait(PATIENCE_S)
        try:
            return read(spans, **given)
        except HotshelfError:
            ended.set()
            raise

    monkeypatch.setattr(warming.reading, "read", slowly)

    async def main() -> None:
        task = asyncio.ensure_future(AsyncClient(server.path).acquire("sdxl", warm=True).__aenter__())
        await asyncio.to_thread(began.wait, PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        assert await asyncio.to_thread(ended.wait, PATIENCE_S)

    asyncio.run(main())
    assert daemon.freed.get(timeout=PATIENCE_S)


def test_a_task_gets_a_warm_lease(server: UnixServer, daemon: FakeDaemon) -> None:
    unet, _ = publish(daemon, sdxl=model())

    async def main() -> None:
        async with AsyncClient(server.path).acquire("sdxl", warm=True) as lease:
            assert lease.warmed is not None
            assert cached_bytes(unet) == 9 * MIB

    asyncio.run(main())


class TestTheCommand:
    def test_says_what_was_read(self, run: Run, daemon: FakeDaemon) -> None:
        unet, _ = publish(daemon, sdxl=model(), times=2)
        result = run("acquire", "sdxl", "--warm")
        assert result.exit_code == 0, result.output
        assert "9.4 MB in the page cache: 9.4 MB read in" in result.stderr
        assert len(result.stdout.splitlines()) == 1
        assert cached_bytes(unet) == 9 * MIB

    def test_says_what_had_no_room(self, run: Run, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(daemon, sdxl=model(), times=2)
        monkeypatch.setattr(warming.warm, "__kwdefaults__", {**warming.warm.__kwdefaults__, "room": lambda _: 4 * MIB})
        assert "; no memory for 5.2 MB" in run("acquire", "sdxl", "--warm").stderr

    def test_says_it_in_json(self, run: Run, daemon: FakeDaemon) -> None:
        publish(daemon, sdxl=model(), times=2)
        warmed = json.loads(run("acquire", "sdxl", "--warm", "--format", "json").stdout)["warmed"]
        assert warmed.pop("seconds") > 0
        assert warmed == {"read_bytes": 9 * MIB + 2, "cached_bytes": 0, "skipped_bytes": 0, "short_of": None}
        assert "warmed" not in json.loads(run("acquire", "sdxl", "--format", "json").stdout)
