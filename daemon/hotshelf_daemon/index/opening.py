"""Getting an index at any cost: one that cannot be read is set aside, and a new one is filled from the store."""

from __future__ import annotations

import contextlib
import logging
import os
import time

from hotshelf_daemon.index.connection import Index, Unreadable
from hotshelf_shared.errors import BadConfiguration

log = logging.getLogger(__name__)
#: Broken indexes are kept for whoever wants to know why, but not without end.
KEPT = 3
_SUFFIXES = ("", "-wal", "-shm")


def open_index(path: str) -> Index:
    """The index at `path`, or a new one that `recover` fills. Raises BadConfiguration."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o750, exist_ok=True)
    except OSError as error:
        reason = f"the folder of the index {path} cannot be made: {error.strerror}"
        raise BadConfiguration(reason, hint="Set index.path to a place this user may write.") from error
    try:
        return Index(path)
    except Unreadable as broken:
        set_aside(path, str(broken))
        return Index(path)


def set_aside(path: str, why: str) -> None:
    aside = f"{path}.broken-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 1_000_000_000:09}"
    log.error("the index is unreadable and is rebuilt", extra={"why": why, "kept_as": aside})
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + suffix, aside + suffix)
    _forget_older(path)


def _forget_older(path: str) -> None:
    folder, name = os.path.split(path)
    kept = sorted(
        entry for entry in os.listdir(folder) if entry.startswith(f"{name}.broken-") and not entry.endswith(("-wal", "-shm"))
    )
    for entry in kept[:-KEPT]:
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, entry + suffix))
