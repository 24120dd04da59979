"""What a change of the configuration's file means for a daemon that runs: a new start in the same process, or nothing.

What a start would refuse is found out before: a daemon that serves is never ended by a slip in a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import Callable

from hotshelf_daemon.acquire import Names
from hotshelf_daemon.config import Loaded, Settings, watched
from hotshelf_daemon.origin.gcs_key import ServiceAccountKey
from hotshelf_daemon.provenance import Keyring
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import Layout
from hotshelf_daemon.store.keys import bundle_key
from hotshelf_shared.errors import BadConfiguration, HotshelfError

log = logging.getLogger(__name__)
#: A file that is being written is read when nothing has happened to it for so long.
SETTLED_S = 0.5
#: Where nothing tells of changes (a network volume, a folder that was replaced) it is looked at this often.
LOOK_S = 30.0
#: Where the daemon is found and keeps its things: another is another daemon, which only its operator can start.
PLACES = ("store", "socket", "socket_mode", "socket_group", "listen", "page_listen", "index", "idle_exit_s")

Stamp = tuple[int, ...] | None


def check(settings: Settings, layout: Layout) -> None:
    """What a start refuses beyond what `load` does. Raises BadConfiguration."""
    total = layout.room().total_bytes
    if isinstance(settings.budget, int) and settings.budget > total:
        raise BadConfiguration(
            f"budget is {settings.budget:,} bytes and the file system of {settings.store} has {total:,}",
            hint="Lower `budget`, or give it as a percentage.",
        )
    if settings.bundles.key_file is not None:
        bundle_key(layout, settings.bundles.key_file)
    if settings.gcs.service_account_file is not None:
        ServiceAccountKey.read(settings.gcs.service_account_file)
    Keyring.of(settings)
    Names(settings).configured()


async def changed(loaded: Loaded, shelf: Shelf, reload: Callable[[], Loaded]) -> Loaded:
    """Returns what the file says, when that is something else and can be used. What cannot be is logged, and the settings stay.

    Never, where there is no file to follow, or where the daemon is somebody's own and ends with it (embedded mode).
    """
    path = loaded.path
    if path is not None and loaded.settings.idle_exit_s is None and not _is_stream(path):
        try:
            return await _followed(path, _Judge(loaded, shelf, reload))
        except Exception:
            shelf.metrics.configuration_is_followed.set(0)
            log.exception("the configuration is no longer followed", extra={"path": path})
    await asyncio.Event().wait()
    raise AssertionError  # nobody ends that wait


async def _followed(path: str, judge: _Judge) -> Loaded:
    loop, touched = asyncio.get_running_loop(), asyncio.Event()
    with watched(path, lambda: loop.call_soon_threadsafe(touched.set)):
        seen: Stamp = ()  # it may have changed since it was read
        while True:
            now = await _settled(path, touched)
            # What was refused may be usable by now, though the file is the same: a secret that it names was missing.
            is_worth_it = now != seen or judge.refused is not None
            if is_worth_it and (other := await asyncio.to_thread(judge.verdict)) is not None:
                return other
            seen = now
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(touched.wait(), LOOK_S)


async def _settled(path: str, touched: asyncio.Event) -> Stamp:
    """Of the file, as soon as it stays the same; neighbours (our own log perhaps) are let change."""
    now = _stamp(path)
    while True:
        touched.clear()
        await asyncio.sleep(SETTLED_S)
        before, now = now, _stamp(path)
        if before == now:
            return now


def _is_stream(path: str) -> bool:
    """A pipe or terminal, which gives what it has but once. What is not there just now will be."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _stamp(path: str) -> Stamp:
    """Of the file behind all links; None while there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


class _Judge:
    """Whether there are other settings that a start would take."""

    def __init__(self, loaded: Loaded, shelf: Shelf, reload: Callable[[], Loaded]) -> None:
        self._loaded, self._shelf, self._reload = loaded, shelf, reload
        #: Why the file cannot be used; None when it can.
        self.refused: str | None = None

    def verdict(self) -> Loaded | None:
        before, self.refused, fresh = self.refused, None, None
        try:
            fresh = self._reload()
            self._check(fresh)
        except Exception as error:  # whatever it is, the daemon serves on as it was
            self.refused = f"{error.message} {error.hint}" if isinstance(error, HotshelfError) else str(error)
            if self.refused != before:
                said = {"path": self._loaded.path, "why": self.refused}
                log.warning("the configuration is not followed; the one before holds", extra=said)
        self._shelf.metrics.configuration_is_followed.set(self.refused is None)
        if self.refused is not None or fresh is None or fresh.settings == self._loaded.settings:
            return None
        log.info("the configuration has changed", extra={"path": self._loaded.path, "changed": difference(self._loaded, fresh)})
        return fresh

    def _check(self, fresh: Loaded) -> None:
        if fresh.settings == self._loaded.settings:
            return
        if self._loaded.says_something and not fresh.says_something:
            raise BadConfiguration("it is empty", hint="Write it whole, or restart hotshelfd to have nothing configured.")
        if moved := [name for name in PLACES if getattr(fresh.settings, name) != getattr(self._loaded.settings, name)]:
            raise BadConfiguration(f"{', '.join(moved)} cannot change under a daemon that runs", hint="Restart hotshelfd.")
        check(fresh.settings, self._shelf.layout)


def difference(before: Loaded, after: Loaded) -> dict[str, str]:
    """By key what was and what is, without secrets."""
    old, new = ({key: value for key, value, _ in one.rows()} for one in (before, after))
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return {key: f"{old.get(key, 'nothing')} → {new.get(key, 'nothing')}" for key in keys} or {"a secret": "another"}
