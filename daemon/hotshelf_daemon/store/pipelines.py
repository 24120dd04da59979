"""Bound pipelines on disk: `pipelines/<key>/` holds a link to the snapshot and `build.json`, which says what it is.

Invariant: a folder appears under its key by one rename, complete; one that is replaced leaves by one rename before that.
"""

from __future__ import annotations

import contextlib
import os
import secrets

from hotshelf_daemon.store import durable
from hotshelf_daemon.store.layout import Layout
from hotshelf_shared.built import MAX_BUILT_BYTES, Built
from hotshelf_shared.errors import HotshelfError

DOCUMENT = "build.json"
LINK = "snapshot"


def put(layout: Layout, built: Built) -> None:
    """The folder of this pipeline, instead of what lies there: built unseen, synced, renamed in."""
    with durable.disk_errors("recording a pipeline"):
        unseen = f"{secrets.token_hex(8)}.p"
        os.mkdir(unseen, 0o750, dir_fd=layout["ingest"])
        try:
            _fill(layout, unseen, built)
            remove(layout, built.key)
            durable.rename_new(layout["ingest"], unseen, layout["pipelines"], built.key)
        except BaseException:
            with contextlib.suppress(OSError):
                layout.remove("ingest", unseen)
            raise
        os.fsync(layout["pipelines"])


def _fill(layout: Layout, name: str, built: Built) -> None:
    folder = durable.open_folder(name, layout["ingest"])
    try:
        fd = durable.create(folder, DOCUMENT, 0)
        try:
            durable.pwrite_all(fd, memoryview(built.canonical()), 0)
        except BaseException:
            os.close(fd)
            raise
        durable.seal(fd)
        os.symlink(_link_of(built), LINK, dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(folder)


def read(layout: Layout, key: str) -> Built | None:
    """What the folder of that key says it is; None unless all of it agrees: key, recipe, files, link."""
    try:
        folder = durable.open_folder(key, layout["pipelines"])
    except OSError:
        return None
    try:
        if sorted(os.listdir(folder)) != [DOCUMENT, LINK]:
            return None
        fd = os.open(DOCUMENT, durable.READ_ONLY_FLAGS, dir_fd=folder)
        try:
            built = Built.parse(_read_all(fd), key)
        finally:
            os.close(fd)
        return built if os.readlink(LINK, dir_fd=folder) == _link_of(built) else None
    except (OSError, HotshelfError):
        return None
    finally:
        os.close(folder)


def remove(layout: Layout, key: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        layout.discard(layout["pipelines"], key)


def names(layout: Layout) -> list[str]:
    return sorted(os.listdir(layout["pipelines"]))


def _link_of(built: Built) -> str:
    """Relative, as all links of the store: it holds on every mount of the whole of it."""
    return f"../../snapshots/{built.revision.hex}"


def _read_all(fd: int) -> bytes:
    data = b""
    while len(data) <= MAX_BUILT_BYTES and (piece := os.pread(fd, MAX_BUILT_BYTES + 1, len(data))):
        data += piece
    return data
