"""`AsyncClient`: the verbs of `Client`, awaitable.

Each call runs on a thread of its own, so that as many acquires can wait as there are tasks. Cancelling the task that
awaits one ends its connection at once: the daemon sees that nobody waits any more. A lease granted in that very moment is
dropped, which frees it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar, overload

from hotshelf.acquisition import Globs, OnProgress, Wanted
from hotshelf.client import Client
from hotshelf.lease import Lease, Leases
from hotshelf.transport import Channel, Transport
from hotshelf_shared.errors import HotshelfError
from hotshelf_shared.manifest import Manifest
from hotshelf_shared.recipe import Recipe
from hotshelf_shared.wire import Progress

T = TypeVar("T")
L = TypeVar("L", Lease, Leases)


class AsyncClient:
    """As `Client`. `on_progress` is called in the event loop."""

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        store: str | os.PathLike[str] | None = None,
        autostart: bool | None = None,
        *,
        transport: Transport | None = None,
    ) -> None:
        self._client = Client(socket, store, autostart, transport=transport)

    @overload
    def acquire(  # type: ignore[overload-overlap]  # a str is an Iterable[str]; this overload goes first
        self,
        source: Wanted,
        *,
        revision: str | None = None,
        allow_patterns: Globs = None,
        ignore_patterns: Globs = None,
        timeout: float | None = 600,
        on_progress: OnProgress | None = None,
        hold_s: float | None = None,
        detached: bool = False,
        warm: bool = False,
    ) -> Acquiring[Lease]: ...
    @overload
    def acquire(
        self,
        source: Iterable[Wanted],
        *,
        allow_patterns: Globs = None,
        ignore_patterns: Globs = None,
        timeout: float | None = 600,
        on_progress: OnProgress | None = None,
        hold_s: float | None = None,
        detached: bool = False,
        warm: bool = False,
    ) -> Acquiring[Leases]: ...
    def acquire(self, source: Any, *, on_progress: OnProgress | None = None, **asked: Any) -> Acquiring[Any]:
        """As `Client.acquire`. To be awaited for the lease, or entered for as long as it is to be held."""
        return Acquiring(partial(self._acquire, source, on_progress, asked))

    async def _acquire(self, source: Any, on_progress: OnProgress | None, asked: dict[str, Any]) -> Any:
        return await self._followed(lambda client, tell: client.acquire(source, on_progress=tell, **asked), on_progress)

    async def _followed(self, verb: Callable[[Client, OnProgress], T], on_progress: OnProgress | None) -> T:
        """A verb that tells of its progress, in the event loop."""
        loop = asyncio.get_running_loop()
        unwanted = threading.Event()

        def tell(progress: Progress) -> None:
            if unwanted.is_set():  # reading into the page cache needs no connection that could be ended
                raise HotshelfError("the call was cancelled")
            if on_progress is not None:
                loop.call_soon_threadsafe(on_progress, progress)

        try:
            return await self._run(lambda client: verb(client, tell))
        finally:
            unwanted.set()

    async def status(self) -> dict[str, Any]:
        return await self._run(Client.status)

    async def health(self) -> dict[str, Any]:
        return await self._run(Client.health)

    async def snapshots(self) -> list[dict[str, Any]]:
        return await self._run(Client.snapshots)

    async def snapshot(self, target: str) -> dict[str, Any]:
        return await self._run(lambda client: client.snapshot(target))

    async def why(self, source: str) -> dict[str, Any]:
        return await self._run(lambda client: client.why(source))

    async def collect(self, *, dry_run: bool = False) -> dict[str, Any]:
        return await self._run(lambda client: client.collect(dry_run=dry_run))

    async def pins(self) -> list[dict[str, Any]]:
        return await self._run(Client.pins)

    async def transfers(self) -> list[dict[str, Any]]:
        return await self._run(Client.transfers)

    async def resolve(self, sources: Iterable[Wanted], *, timeout: float | None = 60) -> list[dict[str, Any]]:
        return await self._run(lambda client: client.resolve(sources, timeout=timeout))

    async def has_blob(self, digest: str) -> bool:
        return await self._run(lambda client: client.has_blob(digest))

    async def put_blob(self, digest: str, path: str | os.PathLike[str], *, timeout: float = 600) -> bool:
        return await self._run(lambda client: client.put_blob(digest, path, timeout=timeout))

    async def put_pipeline(
        self,
        key: str,
        recipe: Recipe | Mapping[str, Any],
        manifest: Manifest | Mapping[str, Any],
        build: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        return await self._run(lambda client: client.put_pipeline(key, recipe, manifest, build))

    async def pipeline(self, key: str) -> dict[str, Any]:
        return await self._run(lambda client: client.pipeline(key))

    async def put_bundle(
        self, environment_key: str, graph_key: str, archive: str | os.PathLike[str], *, timeout: float = 600
    ) -> dict[str, Any]:
        return await self._run(lambda client: client.put_bundle(environment_key, graph_key, archive, timeout=timeout))

    async def bundle(self, environment_key: str, graph_key: str) -> dict[str, Any]:
        return await self._run(lambda client: client.bundle(environment_key, graph_key))

    async def bundles(self, environment_key: str | None = None) -> list[dict[str, Any]]:
        return await self._run(lambda client: client.bundles(environment_key))

    async def pin(self, target: str) -> dict[str, Any]:
        return await self._run(lambda client: client.pin(target))

    async def unpin(self, target: str) -> dict[str, Any]:
        return await self._run(lambda client: client.unpin(target))

    async def evict(self, target: str) -> dict[str, Any]:
        return await self._run(lambda client: client.evict(target))

    async def refresh(
        self, source: str, *, timeout: float | None = 600, on_progress: OnProgress | None = None
    ) -> dict[str, Any]:
        """As `Client.refresh`. `on_progress` is called in the event loop."""
        return await self._followed(lambda client, tell: client.refresh(source, timeout=timeout, on_progress=tell), on_progress)

    async def rollback(self, source: str, *, dry_run: bool = False) -> dict[str, Any]:
        return await self._run(lambda client: client.rollback(source, dry_run=dry_run))

    async def verify(self, target: str | None = None) -> dict[str, Any]:
        return await self._run(lambda client: client.verify(target))

    async def _run(self, verb: Callable[[Client], T]) -> T:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[T] = loop.create_future()
        way = _Cancellable(self._client.transport)
        client = self._client.over(way)

        def work() -> None:
            settle: Callable[[], None]
            try:
                settle = partial(answered.set_result, verb(client))
            except BaseException as error:  # the awaiting task's to handle
                settle = partial(answered.set_exception, error)
            with suppress(RuntimeError):  # the loop is closed: nobody awaits this any more
                loop.call_soon_threadsafe(lambda: None if answered.done() else settle())

        threading.Thread(target=work, name="hotshelf-call", daemon=True).start()
        try:
            return await answered
        except asyncio.CancelledError:
            way.cancel()
            raise


class Acquiring(Generic[L]):
    """An acquire not yet begun: ``await`` it for the lease, or ``async with`` it."""

    def __init__(self, begin: Callable[[], Any]) -> None:
        self._begin = begin
        self._lease: L | None = None

    def __await__(self) -> Generator[Any, None, L]:
        lease: L = yield from self._begin().__await__()
        return lease

    async def __aenter__(self) -> L:
        self._lease = await self
        return self._lease

    async def __aexit__(self, *exc: object) -> None:
        if self._lease is not None:
            await self._lease.__aexit__(*exc)


class _Cancellable:
    """A transport whose connection another thread can end for good."""

    def __init__(self, transport: Transport) -> None:
        self._transport, self._cancelled = transport, False
        self._channel: Channel | None = None

    @property
    def address(self) -> str:
        return self._transport.address

    def connect(self, deadline: float) -> Channel:
        # The channel is stored before the flag is read, and `cancel` does it the other way round: one of them sees it.
        self._channel = channel = self._transport.connect(deadline)
        if self._cancelled:
            channel.close()
            raise HotshelfError("the call was cancelled")
        return channel

    def cancel(self) -> None:
        self._cancelled = True
        if self._channel is not None:
            self._channel.abort()
