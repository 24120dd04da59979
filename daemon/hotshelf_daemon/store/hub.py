"""The Hugging Face view, `hub/`: repositories laid out as the hub's own cache is, every file a link to a blob.

Nothing is kept here: all of it follows from the index, and is made again at start. Invariants: a commit that is named by
`refs/` is complete; commits are only added to; one whose blobs are to go leaves first, name, then folder, in one rename.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from hotshelf_daemon.store import durable
from hotshelf_daemon.store.layout import Layout
from hotshelf_daemon.store.trees import write_whole
from hotshelf_shared.digest import Digest

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
#: What the hub takes for the name of a repository or organisation.
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?\Z")
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}){0,3}\Z")


@dataclass(frozen=True, slots=True)
class Entry:
    """One commit of ORG/NAME, and the branch or tag that stands for it, None for none."""

    organisation: str
    name: str
    commit: str
    files: Mapping[str, Digest]
    ref: str | None = "main"

    @property
    def folder(self) -> str:
        return f"models--{self.organisation}--{self.name}"

    @property
    def can_be_shown(self) -> bool:
        """Whether clients of the hub would find it: they refuse some names."""
        return all(_NAME.match(part) and "--" not in part and ".." not in part for part in (self.organisation, self.name))


def show(layout: Layout, entry: Entry) -> None:
    """Adds what is missing of the commit; then its ref stands for it."""
    if not entry.can_be_shown:
        return
    with durable.disk_errors("showing files below hub/"):
        repository = layout.path("hub", entry.folder)
        commit = os.path.join(repository, "snapshots", entry.commit)
        os.makedirs(os.path.dirname(commit), 0o750, exist_ok=True)
        if os.path.lexists(commit):
            _fill(commit, entry.files)
        else:
            unseen = layout.path("ingest", f"{secrets.token_hex(8)}.v")
            os.mkdir(unseen, 0o750)
            _fill(unseen, entry.files)
            os.rename(unseen, commit)
        if entry.ref is not None and _REF.match(entry.ref) and ".." not in entry.ref:
            _name(layout, repository, entry.ref, entry.commit)


def _fill(commit: str, files: Mapping[str, Digest]) -> None:
    for path, digest in files.items():
        at = os.path.join(commit, path)
        os.makedirs(os.path.dirname(at), 0o750, exist_ok=True)
        target = _link_to(path, digest)
        if _target(at) != target:
            unseen = f"{at}.{secrets.token_hex(4)}"
            os.symlink(target, unseen)
            os.rename(unseen, at)


def _link_to(path: str, digest: Digest) -> str:
    """Relative, as all links of the store: it holds on every mount of the whole of it."""
    return "../" * (path.count("/") + 4) + f"blobs/sha256/{digest.hex[:2]}/{digest.hex}"


def _target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _name(layout: Layout, repository: str, ref: str, commit: str) -> None:
    path = os.path.join(repository, "refs", ref)
    if _read(path) == commit:
        return
    os.makedirs(os.path.dirname(path), 0o750, exist_ok=True)
    folder = durable.open_folder(os.path.dirname(path))
    try:
        write_whole(layout, folder, os.path.basename(path), commit.encode())
    finally:
        os.close(folder)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(64)
    except (OSError, ValueError):
        return None


def hide(layout: Layout, gone: Collection[Digest]) -> None:
    """Before these blobs go: every commit with one of them leaves, as a whole."""
    names = {digest.hex for digest in gone}
    with durable.disk_errors("hiding files below hub/"):
        for repository, commit in _commits(layout):
            if any(link.rpartition("/")[2] in names for link in _links(layout.path("hub", repository, "snapshots", commit))):
                _remove(layout, repository, commit)


def prune(layout: Layout) -> None:
    """At start: what leads nowhere goes."""
    with durable.disk_errors("putting hub/ right"):
        for repository, commit in _commits(layout):
            at = layout.path("hub", repository, "snapshots", commit)
            if not _COMMIT.match(commit) or not all(_leads_to_a_blob(layout, link) for link in _links(at)):
                _remove(layout, repository, commit)


def _commits(layout: Layout) -> list[tuple[str, str]]:
    """Repository folder and commit of all there are."""
    found = []
    for repository in os.listdir(layout["hub"]):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found += [(repository, commit) for commit in os.listdir(layout.path("hub", repository, "snapshots"))]
    return found


def _links(folder: str) -> Iterable[str]:
    for at, _, names in os.walk(folder):
        for name in names:
            yield _target(os.path.join(at, name)) or ""


def _leads_to_a_blob(layout: Layout, link: str) -> bool:
    hex_ = link.rpartition("/")[2]
    return os.path.exists(layout.path("blobs", "sha256", hex_[:2], hex_))


def _remove(layout: Layout, repository: str, commit: str) -> None:
    folder = layout.path("hub", repository)
    for at, _, names in os.walk(os.path.join(folder, "refs"), topdown=False):
        for name in names:
            if _read(os.path.join(at, name)) == commit:
                os.unlink(os.path.join(at, name))
        if not os.listdir(at):
            os.rmdir(at)
    snapshots = durable.open_folder(os.path.join(folder, "snapshots"))
    try:
        layout.discard(snapshots, commit)
    finally:
        os.close(snapshots)
    for empty in (os.path.join(folder, "snapshots"), folder):
        with contextlib.suppress(OSError):  # it holds other commits
            os.rmdir(empty)
