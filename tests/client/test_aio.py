"""The same verbs, awaited; and a wait that is cancelled is one that the daemon sees end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from hotshelf.aio import AsyncClient
from hotshelf.transport import Reply, Request
from hotshelf_shared.errors import NotFound
from hotshelf_shared.wire import Progress

from .fakes import PATIENCE_S, FakeDaemon, HangUp, UnixServer


@pytest.fixture
def client(server: UnixServer) -> AsyncClient:
    return AsyncClient(server.path)


def run(main: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def test_an_awaited_lease_is_a_context(client: AsyncClient, daemon: FakeDaemon) -> None:
    async def main() -> None:
        async with await client.acquire("sdxl") as lease:
            assert (lease.path / "model.safetensors").read_bytes() == b"sdxl"
        assert daemon.leases == {}

    run(main())


def test_an_acquire_is_a_context_by_itself(client: AsyncClient, daemon: FakeDaemon) -> None:
    async def main() -> None:
        async with client.acquire(["sdxl", "style"]) as leases:
            assert [lease.source for lease in leases] == ["sdxl", "style"]
        assert daemon.leases == {}

    run(main())


def test_many_acquires_wait_at_once(client: AsyncClient, daemon: FakeDaemon) -> None:
    together = threading.Barrier(40)

    def meet(request: Request) -> Reply:
        together.wait(PATIENCE_S)
        return daemon.grant(request)

    daemon.acquires += [meet] * 40

    async def main() -> None:
        leases = await asyncio.gather(*(client.acquire(f"model{n}") for n in range(40)))
        assert len({lease.id for lease in leases}) == 40

    run(main())


def test_progress_is_reported_in_the_event_loop(client: AsyncClient) -> None:
    seen: list[tuple[Progress, int]] = []

    async def main() -> None:
        async with client.acquire("sdxl", on_progress=lambda one: seen.append((one, threading.get_ident()))):
            pass

    run(main())
    assert [(one.bytes_done, thread) for one, thread in seen] == [(3, threading.get_ident())]


def test_cancelling_ends_the_connection(client: AsyncClient, daemon: FakeDaemon, server: UnixServer) -> None:
    gone = threading.Event()
    waiting = threading.Event()

    def wait_for_the_end(_: Request) -> Reply:
        waiting.set()
        assert server.connections[-1].recv(1) == b""  # the client's end
        gone.set()
        raise HangUp

    daemon.acquires.append(wait_for_the_end)

    async def main() -> None:
        task = asyncio.ensure_future(client.acquire("sdxl").__aenter__())
        await asyncio.to_thread(waiting.wait, PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(gone.wait, PATIENCE_S)

    run(main())
    assert daemon.asked("POST", "/v1/leases")
    assert daemon.requests.empty()  # and it is not asked for again


def test_a_lease_granted_as_the_task_is_cancelled_is_freed(client: AsyncClient, daemon: FakeDaemon) -> None:
    answered = threading.Event()

    def grant(request: Request) -> Reply:
        reply = daemon.grant(request)
        return Reply(lines=[*reply.lines])

    daemon.acquires.append(grant)

    async def main() -> None:
        task = asyncio.ensure_future(client.acquire("sdxl").__aenter__())
        await asyncio.sleep(0)
        # The loop is held until the lease is in hand, so that the cancellation meets an answer already given.
        daemon.renewals.get(timeout=PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    answered.set()
    assert daemon.freed.get(timeout=PATIENCE_S) == "lease1"


def test_the_other_verbs_are_awaitable(client: AsyncClient, daemon: FakeDaemon) -> None:
    for name in ("snapshots", "pins", "transfers"):
        daemon.looks["GET", f"/v1/{name}"] = lambda _, name=name: Reply({name: []})
    for name in ("status", "health", "snapshots/sdxl"):
        daemon.looks["GET", f"/v1/{name}"] = lambda _: Reply({"revision": "sha256:ab"})
    daemon.looks["PUT", "/v1/pins/sdxl"] = daemon.looks["DELETE", "/v1/pins/sdxl"] = lambda _: Reply({})
    daemon.looks["DELETE", "/v1/snapshots/sdxl"] = daemon.looks["POST", "/v1/verify"] = lambda _: Reply({"n": 1})
    daemon.looks["POST", "/v1/rollback"] = lambda request: Reply(request.body)
    ready = {"event": "ready", "refreshed": {"n": 2}}
    daemon.looks["POST", "/v1/refresh"] = lambda _: Reply(lines=[{"event": "progress", "phase": "fetch"}, ready])
    seen: list[str] = []

    async def main() -> None:
        assert [await client.snapshots(), await client.pins(), await client.transfers()] == [[], [], []]
        assert await client.status() == await client.health() == await client.snapshot("sdxl")
        assert [await client.pin("sdxl"), await client.unpin("sdxl")] == [{}, {}]
        assert [await client.evict("sdxl"), await client.verify("sdxl")] == [{"n": 1}, {"n": 1}]
        assert await client.rollback("sdxl", dry_run=True) == {"source": "sdxl", "dry_run": True}
        assert await client.refresh("sdxl", on_progress=lambda progress: seen.append(progress.phase)) == {"n": 2}
        assert seen == ["fetch"]
        with pytest.raises(NotFound):
            await client.evict("style")

    run(main())
