"""Notices that the configuration's file is another one: edited, replaced by a rename, or exchanged behind a link, as the
kubelet exchanges a ConfigMap."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

log = logging.getLogger(__name__)
#: Reading it is an event too, and no change.
_CHANGES = frozenset({"created", "modified", "moved", "deleted"})


class _Told(FileSystemEventHandler):
    def __init__(self, on_change: Callable[[], object]) -> None:
        self._on_change = on_change

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in _CHANGES:
            self._on_change()


@contextlib.contextmanager
def watched(path: str, on_change: Callable[[], object]) -> Iterator[None]:
    """Calls `on_change`, on a thread of its own, whenever something happens in the folders of the file and of what it links to.

    Several times for one change, and for neighbours' changes too; not where a folder is itself replaced, or changed by another
    machine. Look what there is, and now and then unasked. Where it cannot watch it says so and does nothing.
    """
    observer = Observer()
    try:
        for folder in dict.fromkeys(os.path.dirname(os.path.abspath(one)) for one in (path, os.path.realpath(path))):
            observer.schedule(_Told(on_change), folder)
        observer.start()
        _keep_from_children()
    except OSError as error:  # no inotify left, or the folder is gone
        log.warning("changes of the configuration are noticed late", extra={"path": path, "why": str(error)})
        yield
        return
    try:
        yield
    finally:
        observer.stop()
        observer.join()


def _keep_from_children() -> None:
    """watchdog's descriptor would be handed on to whatever is started; nothing of ours is meant to be."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)
