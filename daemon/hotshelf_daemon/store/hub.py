"""The Hugging Face view, `hub/`: repositories laid out as the hub's own cache is, every file a link to a blob.

Nothing is kept here: all of it follows from the index, and is made again at start. Invariants: a commit that is named by
`refs/` is complete; commits are only added to; one whose blobs are to go leaves first, name, then folder, in one rename.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from hotshelf_daemon.store import durable
from hotshelf_daemon.store.layout import Layout
from hotshelf_daemon.store.trees import write_whole
from hotshelf_shared.digest import Digest

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
#: What the hub takes for the name of a repository or organisation.
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?\Z")
#: Where our own links lead.
_OURS = re.compile(r"(\.\./)+blobs/sha256/[0-9a-f]{2}/[0-9a-f]{64}\Z")
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
            _add(layout, commit, entry.files)
        else:
            _make(layout, commit, entry.files)
        if entry.ref is not None and _REF.match(entry.ref) and ".." not in entry.ref:
            _name(layout, repository, entry.ref, entry.commit)


def _make(layout: Layout, commit: str, files: Mapping[str, Digest]) -> None:
    """The whole of it, unseen until all is there."""
    unseen = f"{secrets.token_hex(8)}.v"
    try:
        for path, digest in files.items():
            at = layout.path("ingest", unseen, path)
            os.makedirs(os.path.dirname(at), 0o750, exist_ok=True)
            os.symlink(_link_to(path, digest), at)
        os.rename(layout.path("ingest", unseen), commit)
    except BaseException:
        with contextlib.suppress(OSError):
            layout.remove("ingest", unseen)
        raise


def _add(layout: Layout, commit: str, files: Mapping[str, Digest]) -> None:
    for path, digest in files.items():
        at, target = os.path.join(commit, path), _link_to(path, digest)
        if _target(at) != target:
            os.makedirs(os.path.dirname(at), 0o750, exist_ok=True)
            unseen = layout.path("ingest", f"{secrets.token_hex(8)}.v")
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


def hide(layout: Layout, gone: Collection[Digest], staying: Collection[tuple[str, str]] = ()) -> None:
    """Before these blobs go: every commit with one of them leaves, as a whole. Of those that are `staying`, by folder and
    commit, because other selections of them are held, only these links do."""
    names = {digest.hex for digest in gone}
    for repository, commit, links in _commits(layout):
        if not any(link.rpartition("/")[2] in names for link in links):
            continue
        if (repository, commit) not in staying:
            _remove(layout, repository, commit)
            continue
        for path in [*_files(layout.path("hub", repository, "snapshots", commit))]:
            if (_target(path) or "").rpartition("/")[2] in names:
                _forget(path)


def prune(layout: Layout) -> None:
    """At start: what leads nowhere goes."""
    for repository, commit, links in _commits(layout):
        if not _COMMIT.match(commit) or not all(_leads_to_a_blob(layout, link) for link in links):
            _remove(layout, repository, commit)


def keep_only(layout: Layout, entries: Iterable[Entry]) -> None:
    """Repositories and refs that these do not name go. Older commits of those that stay do too when their blobs do."""
    wanted = {entry.folder for entry in entries if entry.can_be_shown}
    named = {(entry.folder, entry.ref) for entry in entries}
    for repository, commit, _ in _commits(layout):
        if repository not in wanted:
            _remove(layout, repository, commit)
            continue
        refs = layout.path("hub", repository, "refs")
        for path in _files(refs):
            if (repository, os.path.relpath(path, refs)) not in named:
                _forget(path)


def _commits(layout: Layout) -> Iterator[tuple[str, str, list[str]]]:
    """Repository folder, commit and where its links lead, of all that were made here. What else lies there is somebody's."""
    for repository in os.listdir(layout["hub"]):
        with contextlib.suppress(OSError):  # another user's, or no folder
            for commit in os.listdir(layout.path("hub", repository, "snapshots")):
                links = [_target(path) or "" for path in _files(layout.path("hub", repository, "snapshots", commit))]
                if any(_OURS.match(link) for link in links):
                    yield repository, commit, links


def _files(folder: str) -> Iterator[str]:
    return (os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)


def _leads_to_a_blob(layout: Layout, link: str) -> bool:
    hex_ = link.rpartition("/")[2]
    return os.path.exists(layout.path("blobs", "sha256", hex_[:2], hex_))


def _remove(layout: Layout, repository: str, commit: str) -> None:
    """Refs to it first."""
    folder = layout.path("hub", repository)
    with durable.disk_errors("hiding files below hub/"):
        for path in [*_files(os.path.join(folder, "refs"))]:
            if _read(path) == commit:
                _forget(path)
        snapshots = durable.open_folder(os.path.join(folder, "snapshots"))
        try:
            layout.discard(snapshots, commit)
        finally:
            os.close(snapshots)
    _drop_empty(os.path.join(folder, "snapshots"))


def _forget(path: str) -> None:
    with durable.disk_errors("forgetting a ref below hub/"):
        os.unlink(path)
    _drop_empty(os.path.dirname(path))


def _drop_empty(folder: str) -> None:
    """And what is above it, up to the repository's own folder."""
    with contextlib.suppress(OSError):  # it holds something
        while not folder.endswith("/hub"):
            os.rmdir(folder)
            folder = os.path.dirname(folder)
