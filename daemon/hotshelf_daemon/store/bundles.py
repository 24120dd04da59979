"""Bound bundles on disk: `bundles/<environment key>/<graph key>/<revision>/` holds a link to the archive, and `bundle.json`.

Named by its revision too, so that the folder a worker has leased stays what it was when a trusted builder's bundle takes
the place of a stranger's. Invariant: a folder appears by one rename, complete; its document is replaced by one rename.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from hotshelf_daemon.store import durable, trees
from hotshelf_daemon.store.layout import Layout
from hotshelf_shared.bundle import ARCHIVE, MAX_DOCUMENT_BYTES, Bundle, BundleName
from hotshelf_shared.digest import Revision
from hotshelf_shared.errors import HotshelfError, InvalidRequest

DOCUMENT = "bundle.json"


def path_of(name: BundleName, revision: Revision) -> str:
    """Relative to the store."""
    return f"bundles/{name}/{revision.hex}"


def put(layout: Layout, bundle: Bundle) -> None:
    """The folder of this bundle: built unseen, synced, renamed in. One that is there gets the new document only."""
    with durable.disk_errors("recording a bundle"), _parent(layout, bundle.name, make=True) as parent:
        name = bundle.revision.hex
        before = _open(parent, name)
        if before is not None:
            try:
                if set(os.listdir(before)) <= {ARCHIVE, DOCUMENT} and _is_link_right(before, bundle):
                    trees.write_whole(layout, before, DOCUMENT, bundle.canonical())
                    return
            finally:
                os.close(before)
        with contextlib.suppress(FileNotFoundError):
            layout.discard(parent, name)
        _build(layout, parent, bundle)


def _build(layout: Layout, parent: int, bundle: Bundle) -> None:
    unseen = f"{secrets.token_hex(8)}.b"
    os.mkdir(unseen, 0o750, dir_fd=layout["ingest"])
    try:
        folder = durable.open_folder(unseen, layout["ingest"])
        try:
            os.symlink(_link_of(bundle), ARCHIVE, dir_fd=folder)
            trees.write_whole(layout, folder, DOCUMENT, bundle.canonical())
        finally:
            os.close(folder)
        durable.rename_new(layout["ingest"], unseen, parent, bundle.revision.hex)
    except BaseException:
        with contextlib.suppress(OSError):
            layout.remove("ingest", unseen)
        raise
    os.fsync(parent)


def read(layout: Layout, name: BundleName, revision: str) -> Bundle | None:
    """What that folder says it is; None unless it agrees with where it lies and with its link. The signature is not asked."""
    try:
        with _parent(layout, name) as parent:
            folder = durable.open_folder(revision, parent)
            try:
                return _read(folder, name, revision)
            finally:
                os.close(folder)
    except (OSError, HotshelfError):
        return None


def _read(folder: int, name: BundleName, revision: str) -> Bundle | None:
    """Raises OSError or IntegrityError."""
    if sorted(os.listdir(folder)) != [ARCHIVE, DOCUMENT]:
        return None
    fd = os.open(DOCUMENT, durable.READ_ONLY_FLAGS, dir_fd=folder)
    try:
        bundle = Bundle.parse(os.pread(fd, MAX_DOCUMENT_BYTES + 1, 0))
    finally:
        os.close(fd)
    right = bundle.name == name and bundle.revision.hex == revision and _is_link_right(folder, bundle)
    return bundle if right else None


def remove(layout: Layout, name: BundleName, revision: str) -> None:
    """The folder, and those above it that it leaves empty."""
    with durable.disk_errors("removing a bundle"), contextlib.suppress(FileNotFoundError):
        with _parent(layout, name) as parent:
            layout.discard(parent, revision)
        _remove_empty(layout, name)


def quarantine(layout: Layout, name: BundleName, revision: str) -> str:
    """Keeps a folder that is not what it should be out of the way. Its new name."""
    with _parent(layout, name) as parent:
        kept = layout.quarantine(parent, revision)
    _remove_empty(layout, name)
    return kept


def _remove_empty(layout: Layout, name: BundleName) -> None:
    above = _open(layout["bundles"], name.environment_key)
    if above is not None:
        try:
            _remove_if_empty(above, name.graph_key)
        finally:
            os.close(above)
        _remove_if_empty(layout["bundles"], name.environment_key)


def _remove_if_empty(parent: int, name: str) -> None:
    """One that stays means nothing, and the next start removes it."""
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=parent)


def names(layout: Layout) -> list[tuple[BundleName, str]]:
    """Every folder that lies where a bundle's does. What lies anywhere else goes to quarantine, and empty folders go."""
    found = []
    for environment_key in sorted(os.listdir(layout["bundles"])):
        above = _open(layout["bundles"], environment_key)
        if above is None:
            layout.quarantine(layout["bundles"], environment_key)
            continue
        try:
            for graph_key in sorted(os.listdir(above)):
                found += _below(layout, above, environment_key, graph_key)
        finally:
            os.close(above)
        _remove_if_empty(layout["bundles"], environment_key)
    return found


def _below(layout: Layout, above: int, environment_key: str, graph_key: str) -> list[tuple[BundleName, str]]:
    try:
        name = BundleName.of(environment_key, graph_key)
        folder = durable.open_folder(graph_key, above)
    except (OSError, InvalidRequest):
        layout.quarantine(above, graph_key)
        return []
    try:
        found = [(name, revision) for revision in sorted(os.listdir(folder))]
    finally:
        os.close(folder)
    _remove_if_empty(above, graph_key)
    return found


@contextmanager
def _parent(layout: Layout, name: BundleName, *, make: bool = False) -> Iterator[int]:
    """`bundles/<environment key>/<graph key>/`, opened step by step, following no link."""
    if make:
        durable.make_folder(layout["bundles"], name.environment_key)
    above = durable.open_folder(name.environment_key, layout["bundles"])
    try:
        if make:
            durable.make_folder(above, name.graph_key)
        parent = durable.open_folder(name.graph_key, above)
    finally:
        os.close(above)
    try:
        yield parent
    finally:
        os.close(parent)


def _open(parent: int, name: str) -> int | None:
    try:
        return durable.open_folder(name, parent)
    except OSError:
        return None


def _is_link_right(folder: int, bundle: Bundle) -> bool:
    try:
        return os.readlink(ARCHIVE, dir_fd=folder) == _link_of(bundle)
    except OSError:
        return False


def _link_of(bundle: Bundle) -> str:
    """Relative, as all links of the store: it holds on every mount of the whole of it."""
    return f"../../../../blobs/sha256/{bundle.digest.hex[:2]}/{bundle.digest.hex}"
