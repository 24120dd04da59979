"""Places that stay while what stands there changes, a link each to the snapshot that stands for it now: below `names/` every
configured name, below `model_cache/` each folder that Truss would have filled.

Nothing is kept here: all of it follows from the index and the configuration, and is made again at start. Invariants: a link
leads to a snapshot that is complete; it turns to another in one rename; it goes before its snapshot does. What is not ours
stays, unless it lies in the way.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from hotshelf_daemon.store import durable
from hotshelf_daemon.store.layout import Layout
from hotshelf_shared.digest import Revision

ROOTS = ("names", "model_cache")
_TARGET = re.compile(r"(?:\.\./)+snapshots/([0-9a-f]{64})(?:/[^/]+)?\Z")


@dataclass(frozen=True, slots=True)
class Place:
    """`folder`, a checked path below one of `ROOTS`, is to be the snapshot; or, of a snapshot of one `file`, that file."""

    folder: str
    revision: Revision
    file: str | None = None

    @property
    def target(self) -> str:
        """Relative, as all links of the store: it holds on every mount of the whole of it."""
        up = "../" * self.folder.count("/")
        return f"{up}snapshots/{self.revision.hex}" + (f"/{self.file}" if self.file is not None else "")


def show(layout: Layout, place: Place) -> None:
    """Instead of whatever lies there."""
    with durable.disk_errors(f"showing files at {place.folder}"):
        at, target = layout.path(place.folder), place.target
        _make_parents(layout, place.folder)
        if _read(at) == target:
            return
        unseen = layout.path("ingest", f"{secrets.token_hex(8)}.m")
        os.symlink(target, unseen)
        try:
            if os.path.isdir(at) and not os.path.islink(at):
                _discard(layout, place.folder)
            os.rename(unseen, at)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(unseen)
            raise


def hide(layout: Layout, gone: Collection[Revision]) -> None:
    """Before these snapshots go: what leads to one leaves."""
    hexes = {revision.hex for revision in gone}
    with durable.disk_errors("hiding files below names/ and model_cache/"):
        for folder, hex_ in _links(layout):
            if hex_ in hexes:
                _remove(layout, folder)


def prune(layout: Layout) -> None:
    """At start: what leads to nothing, or to what is not all there, goes."""
    with durable.disk_errors("putting names/ and model_cache/ right"):
        for folder, hex_ in _links(layout):
            if not os.path.exists(layout.path(folder)) or not _is_whole(layout, hex_):
                _remove(layout, folder)


def revisions(layout: Layout) -> set[Revision]:
    """All that something leads to."""
    return {Revision.from_hex(hex_) for _, hex_ in _links(layout)}


def keep_only(layout: Layout, places: Iterable[Place]) -> None:
    """At start, before these show: what else does goes."""
    wanted = {place.folder for place in places}
    with durable.disk_errors("putting names/ and model_cache/ right"):
        for folder, _ in _links(layout):
            if folder not in wanted:
                _remove(layout, folder)


def _make_parents(layout: Layout, folder: str) -> None:
    """Real directories: through a link in their place we would write into what it leads to."""
    parts = folder.split("/")[:-1]
    for depth in range(2, len(parts) + 1):
        parent = "/".join(parts[:depth])
        at = layout.path(parent)
        if os.path.lexists(at) and (os.path.islink(at) or not os.path.isdir(at)):
            os.unlink(at)
        with contextlib.suppress(FileExistsError):
            os.mkdir(at, 0o750)


def _links(layout: Layout) -> list[tuple[str, str]]:
    """Folders that are links of ours, and the revisions, in hex, that they lead to."""
    found = []
    for root in ROOTS:
        for at, folders, files in os.walk(layout.path(root)):  # what cannot be entered is another's
            for name in (*folders, *files):
                path = os.path.join(at, name)
                if ours := _TARGET.match(_read(path) or ""):
                    found.append((os.path.relpath(path, layout.root), ours[1]))
    return found


def _read(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _is_whole(layout: Layout, hex_: str) -> bool:
    walked = os.walk(layout.path("snapshots", hex_))
    return all(os.path.exists(os.path.join(at, name)) for at, _, names in walked for name in names)


def _remove(layout: Layout, folder: str) -> None:
    """And the directories above that it leaves empty."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(layout.path(folder))
    while (folder := folder.rpartition("/")[0]) not in ROOTS:
        try:
            os.rmdir(layout.path(folder))
        except OSError:
            return  # it holds others


def _discard(layout: Layout, folder: str) -> None:
    above, _, name = folder.rpartition("/")
    parent = durable.open_folder(layout.path(above))
    try:
        layout.discard(parent, name)
    finally:
        os.close(parent)
