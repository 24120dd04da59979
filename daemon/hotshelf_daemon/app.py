"""Builds hotshelfd and runs it: the one place that knows every part, and the order in which they start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from importlib.metadata import PackageNotFoundError, version

from aiohttp import web

from hotshelf_daemon import janitor, page, probes, server, views
from hotshelf_daemon.acquire import (
    Binder,
    BundleBinder,
    BundleOutbox,
    Bundles,
    Desk,
    Explaining,
    Freshness,
    HandIns,
    Keeping,
    Leasing,
    Names,
    PipelineOutbox,
    Pipelines,
    Preparer,
    Publisher,
    Refreshing,
    Repositories,
    Turning,
    published_bundles,
    published_pipelines,
)
from hotshelf_daemon.config import Loaded, Settings
from hotshelf_daemon.index import file_system_of, open_index, set_aside
from hotshelf_daemon.ingest import Ingests
from hotshelf_daemon.metrics import Metrics
from hotshelf_daemon.origin import Directory, Origin, Retrying
from hotshelf_daemon.origin.counting import Counting
from hotshelf_daemon.reconfigure import changed, check
from hotshelf_daemon.recover import recover
from hotshelf_daemon.server.unix import group_id
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import Layout
from hotshelf_daemon.store.keys import bundle_key
from hotshelf_shared.errors import BadConfiguration

log = logging.getLogger(__name__)
SHORTEST_LIFE_S = 3.0


def hotshelf_version() -> str:
    try:
        return version("hotshelf")
    except PackageNotFoundError:
        return "0+unknown"


def open_shelf(settings: Settings, metrics: Metrics) -> Shelf:
    """The store locked and put right, its index open. Raises BadConfiguration. Blocks; may hash what it does not know."""
    layout = Layout(settings.store, group=group_id(settings.socket_group), lock_wait_s=settings.idle_exit_s or 0)
    if file_system_of(settings.store) == "overlay":
        log.warning(
            "the store lies in the container's own layer and goes with it: mount a volume", extra={"store": settings.store}
        )
    try:
        check(settings, layout)
        key = bundle_key(layout, settings.bundles.key_file)
        index = open_index(settings.index_path)
        try:
            recover(layout, index, key)
        except BaseException:
            index.close()
            raise
    except BaseException:
        layout.close()
        raise
    return Shelf(settings, layout, index, metrics, key)


async def serve(loaded: Loaded, reload: Callable[[], Loaded]) -> Loaded | None:
    """Runs until SIGTERM or SIGINT, then drains: no new request, those under way get `drain_s`, the rest is resumable.

    What the daemon is to be started anew with, if it is: the index broke under it and has been set aside, or there are other
    settings.
    """
    settings, stopping, probed = loaded.settings, asyncio.Event(), probes.Probed()
    _on_signals(os._exit, 0)  # putting a store right may take long, and may be cut off anywhere
    # First: a daemon that cannot have its address has not answered anybody, and one that puts its store right is alive.
    async with _tcp(probes.application(probed), "listen", settings.listen) if settings.listen else contextlib.nullcontext():
        shelf = await asyncio.to_thread(open_shelf, settings, Metrics(hotshelf_version()))
        began = time.monotonic()
        try:
            _on_signals(stopping.set)
            probed.shelf = shelf
            async with running(shelf, stopping):
                probed.is_serving = True
                log.info("ready", extra={"socket": settings.socket, "store": settings.store, "listen": settings.listen})
                other = await _end_of(shelf, stopping, loaded, reload)
                probed.is_serving = False
                log.info("draining", extra={"drain_s": _drain_s(shelf)})
            async with shelf.hand:
                pass  # what is changing the disk and the index is through
        finally:
            probed.shelf = None
            await asyncio.to_thread(shelf.index.close)
            if shelf.index.is_unreadable:
                set_aside(settings.index_path, "it broke while it was in use")
            shelf.layout.close()
        log.info("stopped")
        if shelf.index.is_unreadable and not stopping.is_set():
            # A disk that breaks every index is not to be worn out by new ones.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), max(0.0, SHORTEST_LIFE_S - (time.monotonic() - began)))
    if stopping.is_set():
        return None
    return other or (loaded if shelf.index.is_unreadable else None)


def _on_signals(do: Callable[..., object], *args: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, do, *args)


async def _end_of(shelf: Shelf, stopping: asyncio.Event, loaded: Loaded, reload: Callable[[], Loaded]) -> Loaded | None:
    """Until somebody wants the daemon to stop, the index breaks under it, or there are other settings: these."""
    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    shelf.index.on_unreadable = lambda: loop.call_soon_threadsafe(ending.set)
    if shelf.index.is_unreadable:
        return None
    changing = asyncio.create_task(changed(loaded, shelf, reload))
    waits = [asyncio.create_task(event.wait()) for event in (stopping, ending)]
    await asyncio.wait([*waits, changing], return_when=asyncio.FIRST_COMPLETED)
    other = changing.result() if changing.done() else None
    for wait in (*waits, changing):
        wait.cancel()
    await asyncio.wait([changing])  # its threads are through
    return other


def _drain_s(shelf: Shelf) -> float:
    """Without an index nothing under way can succeed."""
    return 0.1 if shelf.index.is_unreadable else shelf.settings.drain_s


@contextlib.asynccontextmanager
async def running(shelf: Shelf, stopping: asyncio.Event | None = None) -> AsyncIterator[None]:
    """Everything at work on an open shelf; in embedded mode `stopping` is set when nobody has been there for a while."""
    settings, metrics = shelf.settings, shelf.metrics

    def decorated(origin: Origin) -> Origin:
        return Retrying(Counting(origin, metrics), settings.fetch.attempts)

    names = Names(settings)
    shelf.shown, shelf.places = names.shown(), names.places()
    ingests = Ingests(shelf)
    hasty = Directory(settings.hasty(), lambda origin: Counting(origin, metrics))
    pipelines = Pipelines(shelf, published_pipelines(shelf, hasty))
    bundles = Bundles(shelf, published_bundles(shelf, hasty))
    directory = Directory(settings, decorated, lambda mirror: Counting(mirror, metrics))
    preparer = Preparer(shelf, directory, ingests, pipelines=pipelines, bundles=bundles)
    freshness = Freshness(shelf, preparer)
    leasing = Leasing(shelf)
    keeping = Keeping(shelf, names, preparer)
    hand_ins = HandIns(shelf, preparer, ingests.receiver)
    built, compiled = Publisher(shelf, PipelineOutbox(shelf, pipelines)), Publisher(shelf, BundleOutbox(shelf, bundles))
    binder = Binder(shelf, names, pipelines, hand_ins, version=hotshelf_version(), on_bound=built.wake)
    calls = server.Calls(
        shelf=shelf,
        desk=Desk(shelf, names, preparer, freshness, leasing, pipelines=pipelines, bundles=bundles),
        leasing=leasing,
        keeping=keeping,
        explaining=Explaining(shelf, names),
        handing=server.Handing(hand_ins, binder, pipelines),
        bundling=server.Bundling(BundleBinder(shelf, names, bundles, hand_ins, on_bound=compiled.wake), bundles),
        turns=server.Turns(Refreshing(shelf, names, preparer), Turning(shelf, names)),
        version=hotshelf_version(),
        began=time.monotonic(),
        keepers={},
    )
    await leasing.resume()
    hand_ins.resume()
    await keeping.pin_configured(name for name, model in settings.names.items() if model.pin or model.is_viewed)
    await views.reconcile(shelf)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(ingests.drain)
        stack.push_async_callback(freshness.stop)
        for publisher in (built, compiled):
            stack.push_async_callback(publisher.stop)
            publisher.start()
        warming = asyncio.create_task(asyncio.to_thread(directory.warm))
        stack.callback(warming.cancel)
        listening = await stack.enter_async_context(_unix(calls, shelf))
        if settings.hub_mirror.token is not None and settings.page_listen:
            served = page.application(shelf, Repositories(shelf, names, preparer, freshness))
            await stack.enter_async_context(_tcp(served, "page_listen", settings.page_listen))
        sweeping = asyncio.create_task(janitor.run(shelf, leasing, hand_ins, preparer, calls.keepers))
        stack.callback(sweeping.cancel)
        if settings.idle_exit_s is not None and stopping is not None:
            watching = asyncio.create_task(janitor.stop_when_idle(listening, settings.idle_exit_s, stopping))
            stack.callback(watching.cancel)
        for name, model in settings.names.items():
            if model.preload:
                freshness.preload(names.configured()[name])
        yield


@contextlib.asynccontextmanager
async def _unix(calls: server.Calls, shelf: Shelf) -> AsyncIterator[Callable[[], int]]:
    """Yields a function that counts the open connections."""
    settings = shelf.settings
    group = group_id(settings.socket_group)
    bound = server.listen_on(settings.socket, mode=int(settings.socket_mode, 8), group=group)
    made = os.lstat(settings.socket)
    runner = web.AppRunner(
        server.application(calls, server.Guard(settings, made.st_gid)),
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=max(75.0, 2 * settings.lease_ttl_s),
        shutdown_timeout=settings.drain_s,
    )
    await runner.setup()
    assert runner.server is not None
    handlers, most = runner.server, settings.max_connections
    listening = await asyncio.get_running_loop().create_unix_server(server.shedding(handlers, most), sock=bound, backlog=most)
    try:
        yield lambda: len(handlers.connections)
    finally:
        server.remove_own(settings.socket, made.st_ino)
        listening.close()
        await handlers.shutdown(_drain_s(shelf))
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _tcp(app: web.Application, setting: str, listen: str) -> AsyncIterator[None]:
    host, port = probes.address(listen)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise BadConfiguration(
            f"cannot listen on {listen}: {error.strerror or error}",
            hint=f"Set `{setting}` (HOTSHELF_{setting.upper()}) to a free address, or to nothing to switch it off.",
        ) from error
    try:
        yield
    finally:
        await runner.cleanup()
