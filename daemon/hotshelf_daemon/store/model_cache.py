"""Truss's view, `model_cache/`: for each folder that Truss would have filled a link to the snapshot that stands for it now.

Nothing is kept here: all of it follows from the index and the configuration, and is made again at start. Invariants: a link
leads to a snapshot that is complete; it turns to another in one rename; it goes before its snapshot does.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Collection, Iterator

from hotshelf_daemon.store import durable
from hotshelf_daemon.store.layout import Layout
from hotshelf_shared.digest import Revision

_ROOT = "model_cache"
_TARGET = re.compile(r"(?:\.\./)+snapshots/([0-9a-f]{64})(?:/[^/]+)?\Z")


def show(layout: Layout, folder: str, revision: Revision, file: str | None = None) -> None:
    """The snapshot shows as `folder`, a checked relative path; of a snapshot of one `file`, that file."""
    with durable.disk_errors("showing files below model_cache/"):
        at, target = layout.path(_ROOT, folder), _target(folder, revision, file)
        _make_parents(layout, folder)
        if _read(at) == target:
            return
        unseen = layout.path("ingest", f"{secrets.token_hex(8)}.m")
        os.symlink(target, unseen)
        try:
            if os.path.isdir(at) and not os.path.islink(at):
                _discard(layout, folder)
            os.rename(unseen, at)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(unseen)
            raise


def hide(layout: Layout, gone: Collection[Revision]) -> None:
    """Before these snapshots go: what leads to one leaves."""
    hexes = {revision.hex for revision in gone}
    with durable.disk_errors("hiding files below model_cache/"):
        for folder, target in _entries(layout):
            if _hex_of(target) in hexes:
                _remove(layout, folder)


def prune(layout: Layout) -> None:
    """At start: what leads to nothing, or to what is not all there, goes."""
    with durable.disk_errors("putting model_cache/ right"):
        for folder, target in _entries(layout):
            hex_ = _hex_of(target)
            if hex_ is None or not os.path.exists(layout.path(_ROOT, folder)) or not _is_whole(layout, hex_):
                _remove(layout, folder)


def revisions(layout: Layout) -> set[Revision]:
    """All that something leads to."""
    return {Revision.from_hex(hex_) for _, target in _entries(layout) if (hex_ := _hex_of(target)) is not None}


def keep(layout: Layout, folders: Collection[str]) -> None:
    """At start, before what is to show does: whatever nobody wants any more goes."""
    with durable.disk_errors("putting model_cache/ right"):
        for folder, _ in _entries(layout):
            if folder not in folders:
                _remove(layout, folder)


def _target(folder: str, revision: Revision, file: str | None) -> str:
    """Relative, as all links of the store: it holds on every mount of the whole of it."""
    return "../" * (folder.count("/") + 1) + f"snapshots/{revision.hex}" + (f"/{file}" if file is not None else "")


def _make_parents(layout: Layout, folder: str) -> None:
    """Real directories: through a link in their place we would write into what it leads to."""
    parts = folder.split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        parent = "/".join(parts[:depth])
        at = layout.path(_ROOT, parent)
        if os.path.lexists(at) and (os.path.islink(at) or not os.path.isdir(at)):
            os.unlink(at)
        with contextlib.suppress(FileExistsError):
            os.mkdir(at, 0o750)


def _entries(layout: Layout) -> list[tuple[str, str | None]]:
    """Everything that is no directory, with what it leads to; None for what is no link."""
    return [*_walk(layout.path(_ROOT), "")]


def _walk(root: str, below: str) -> Iterator[tuple[str, str | None]]:
    with os.scandir(os.path.join(root, below)) as found:
        entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)
    for name, is_folder in entries:
        folder = f"{below}/{name}" if below else name
        if is_folder:
            yield from _walk(root, folder)
        else:
            yield folder, _read(os.path.join(root, folder))


def _read(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _hex_of(target: str | None) -> str | None:
    found = _TARGET.match(target or "")
    return found[1] if found else None


def _is_whole(layout: Layout, hex_: str) -> bool:
    walked = os.walk(layout.path("snapshots", hex_))
    return all(os.path.exists(os.path.join(at, name)) for at, _, names in walked for name in names)


def _remove(layout: Layout, folder: str) -> None:
    """And the directories above that it leaves empty."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(layout.path(_ROOT, folder))
    while folder := folder.rpartition("/")[0]:
        try:
            os.rmdir(layout.path(_ROOT, folder))
        except OSError:
            return  # it holds others


def _discard(layout: Layout, folder: str) -> None:
    above, _, name = folder.rpartition("/")
    parent = durable.open_folder(layout.path(_ROOT, above) if above else layout.path(_ROOT))
    try:
        layout.discard(parent, name)
    finally:
        os.close(parent)
