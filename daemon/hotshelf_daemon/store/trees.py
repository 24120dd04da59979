"""Snapshots on disk, and the small records from which a lost index is rebuilt: manifests, refs and pins.

Invariant: a snapshot appears under its name by one rename, complete, with every link pointing at a blob that was there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from typing import Any

from hotshelf_daemon.store import durable
from hotshelf_daemon.store.layout import Layout
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import HotshelfError
from hotshelf_shared.manifest import MAX_MANIFEST_BYTES, Manifest

MAX_RECORD_BYTES = 4 << 20
#: How the name of a rollback's record ends, before ``.json``.
ROLLBACK = ".rollback"


def path_of(revision: Revision) -> str:
    """Relative to the store."""
    return f"snapshots/{revision.hex}"


def link_to(path: str, digest: Digest) -> str:
    """The relative target of a snapshot's link: it holds on every mount of the whole store."""
    return "../" * (path.count("/") + 2) + f"blobs/sha256/{digest.hex[:2]}/{digest.hex}"


def lay_out(layout: Layout, tree: Manifest) -> None:
    """Manifest record, then the directory of links: built unseen, synced bottom up, renamed in."""
    with durable.disk_errors("laying out a snapshot"):
        write_record(layout, "manifests", f"{tree.revision.hex}.json", tree.canonical())
        if is_laid_out(layout, tree):
            return
        unseen = f"{secrets.token_hex(8)}.d"
        os.mkdir(unseen, 0o750, dir_fd=layout["ingest"])
        try:
            _fill(layout, unseen, tree)
            remove(layout, tree.revision)  # what lies there is incomplete, or not ours
            durable.rename_new(layout["ingest"], unseen, layout["snapshots"], tree.revision.hex)
        except BaseException:
            with contextlib.suppress(OSError):
                layout.remove("ingest", unseen)
            raise
        os.fsync(layout["snapshots"])


def _fill(layout: Layout, name: str, tree: Manifest) -> None:
    root = durable.open_folder(name, layout["ingest"])
    folders = {"": root}
    try:
        for path, entry in tree.items():
            folder, _, file = path.rpartition("/")
            os.symlink(link_to(path, entry.digest), file, dir_fd=_folder(folders, folder))
        for path in sorted(folders, key=lambda p: p.count("/") + bool(p), reverse=True):
            os.fsync(folders[path])
    finally:
        for fd in folders.values():
            os.close(fd)


def _folder(folders: dict[str, int], path: str) -> int:
    if path not in folders:
        above, _, name = path.rpartition("/")
        parent = _folder(folders, above)
        os.mkdir(name, 0o750, dir_fd=parent)
        folders[path] = durable.open_folder(name, parent)
    return folders[path]


def is_there(layout: Layout, revision: Revision) -> bool:
    """A handle that a network volume calls stale leads nowhere: what cannot be looked at is not there."""
    try:
        return durable.exists(layout["snapshots"], revision.hex)
    except OSError as error:
        if error.errno in (errno.ESTALE, errno.ENOTDIR, errno.EIO):
            return False
        raise


def is_laid_out(layout: Layout, tree: Manifest) -> bool:
    """Whether the directory is there with every link as it should be."""
    root = layout.path(path_of(tree.revision))
    try:
        return all(os.readlink(f"{root}/{path}") == link_to(path, entry.digest) for path, entry in tree.items())
    except OSError:
        return False


def remove(layout: Layout, revision: Revision) -> None:
    with contextlib.suppress(FileNotFoundError):
        layout.discard(layout["snapshots"], revision.hex)


def forget(layout: Layout, revision: Revision) -> None:
    """Removes a snapshot and its manifest record."""
    with durable.disk_errors("removing a snapshot"):
        remove(layout, revision)
        drop_record(layout, "manifests", f"{revision.hex}.json")


def names(layout: Layout) -> list[str]:
    with os.scandir(layout["snapshots"]) as entries:
        return sorted(entry.name for entry in entries)


# ---- records


def write_record(layout: Layout, folder: str, name: str, data: bytes) -> None:
    """Atomic and durable; replaces."""
    write_whole(layout, layout[folder], name, data)


def write_whole(layout: Layout, folder: int, name: str, data: bytes) -> None:
    """A small file in an open folder of the store: unseen until it is complete and on the disk; replaces."""
    unseen = f"{secrets.token_hex(8)}.rec"
    fd = durable.create(layout["ingest"], unseen, 0)
    try:
        try:
            durable.pwrite_all(fd, memoryview(data), 0)
        except BaseException:
            os.close(fd)
            raise
        durable.seal(fd)
        os.rename(unseen, name, src_dir_fd=layout["ingest"], dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            layout.remove("ingest", unseen)
        raise
    os.fsync(folder)


def write_json(layout: Layout, folder: str, name: str, body: dict[str, Any]) -> None:
    with durable.disk_errors(f"writing {folder}/"):
        write_record(layout, folder, f"{name}.json", json.dumps(body, sort_keys=True).encode())


def rollback_record(source: str) -> str:
    """The name of a rollback's record in refs/, beside those of its refs."""
    return f"{Digest.of(source.encode()).hex}{ROLLBACK}"


def drop_record(layout: Layout, folder: str, name: str, *, synced: bool = False) -> None:
    """Gone; `synced` says that no power cut may bring it back."""
    with durable.disk_errors(f"removing a record of {folder}/"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=layout[folder])
        if synced:
            os.fsync(layout[folder])


def record(layout: Layout, folder: str, name: str) -> dict[str, Any]:
    """A JSON record of refs/ or pins/; empty when it is broken: it is only there to rebuild from."""
    try:
        body = json.loads(_read(layout, folder, name, MAX_RECORD_BYTES))
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def manifest(layout: Layout, name: str) -> Manifest | None:
    """A manifest record whose bytes match its name; None for any other."""
    try:
        tree = Manifest.parse(_read(layout, "manifests", name, MAX_MANIFEST_BYTES + 1))
    except HotshelfError:
        return None
    return tree if f"{tree.revision.hex}.json" == name else None


def _read(layout: Layout, folder: str, name: str, limit: int) -> bytes:
    try:
        fd = os.open(name, durable.READ_ONLY_FLAGS, dir_fd=layout[folder])
    except OSError:
        return b""
    try:
        return os.pread(fd, limit, 0)
    except OSError:  # a folder under a record's name, or a page that the disk lost
        return b""
    finally:
        os.close(fd)
