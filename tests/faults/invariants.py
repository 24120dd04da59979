"""The invariants of a store that hold after any crash, checked on the disk and in the index. An empty list is good."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from hotshelf_daemon import app
from hotshelf_daemon.config import load
from hotshelf_daemon.metrics import Metrics
from hotshelf_daemon.recover import recover
from hotshelf_shared.built import Built
from hotshelf_shared.bundle import Bundle
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import HotshelfError
from hotshelf_shared.manifest import FileEntry, Manifest


@dataclass(frozen=True, slots=True)
class Promise:
    """A snapshot that was acknowledged: its revision and the digest of each of its files, by path."""

    revision: str
    files: dict[str, str]


def digest_of(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def visible_wrongs(store: pathlib.Path) -> Iterator[str]:
    """I2: whatever has a name that readers look at is complete and right, at any moment, daemon or none."""
    for blob in sorted((store / "blobs" / "sha256").glob("*/*")):
        if digest_of(blob) != f"sha256:{blob.name}":
            yield f"the visible blob {blob.name} holds other bytes"
    for folder in sorted((store / "snapshots").glob("*")):
        links = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
        if any(not link.is_symlink() or not link.exists() for link in links):
            yield f"the visible snapshot {folder.name} has a broken link"
        elif revision_of(folder, links) != f"sha256:{folder.name}":
            yield f"the visible snapshot {folder.name} is not all there"
    for folder in sorted((store / "pipelines").glob("*")):
        try:
            built = Built.parse((folder / "build.json").read_bytes(), folder.name)
        except (OSError, HotshelfError) as error:
            yield f"the visible pipeline {folder.name} has no good document: {error}"
            continue
        if (folder / "snapshot").resolve() != (store / "snapshots" / built.revision.hex).resolve():
            yield f"the visible pipeline {folder.name} leads to another snapshot"
        if not (folder / "snapshot").is_dir():
            yield f"the visible pipeline {folder.name} leads nowhere"
    for folder in sorted((store / "bundles").glob("*/*/*")):
        where = str(folder.relative_to(store / "bundles"))
        try:
            bundle = Bundle.parse((folder / "bundle.json").read_bytes())
        except (OSError, HotshelfError) as error:
            yield f"the visible bundle {where} has no good document: {error}"
            continue
        if where != f"{bundle.name}/{bundle.revision.hex}" or (folder / "archive").resolve().name != bundle.digest.hex:
            yield f"the visible bundle {where} is another's"
        if not (folder / "archive").is_file():
            yield f"the visible bundle {where} leads nowhere"

    yield from _hub_wrongs(store / "hub")
    for root in ("names", "model_cache"):
        for link in (path for path in (store / root).rglob("*") if path.is_symlink() or not path.is_dir()):
            if not link.is_symlink() or not link.exists():
                yield f"the visible {link.relative_to(store)} leads nowhere"


def _hub_wrongs(hub: pathlib.Path) -> Iterator[str]:
    """Every commit leads to bytes, and every ref to a commit."""
    for link in (path for path in hub.glob("*/snapshots/*/**/*") if path.is_symlink() or not path.is_dir()):
        if not link.is_symlink() or not link.exists():
            yield f"the visible {link.relative_to(hub)} leads nowhere"
    for ref in (path for path in hub.glob("*/refs/**/*") if path.is_file()):
        if not (ref.parents[len(ref.relative_to(hub).parts) - 2] / "snapshots" / ref.read_text()).is_dir():
            yield f"the visible {ref.relative_to(hub)} names a commit that is not there"


def revision_of(folder: pathlib.Path, links: list[pathlib.Path]) -> str:
    """What the links of a snapshot make it, whatever it is called."""
    entries = {}
    for link in links:
        blob = link.resolve()
        entries[str(link.relative_to(folder))] = FileEntry(Digest.from_hex(blob.name), blob.stat().st_size)
    return Manifest.of(entries).revision


def wrongs_after_restart(store: pathlib.Path, promises: Iterable[Promise]) -> Iterator[str]:
    """I1, I3 and I4: a start converges unaided, what is ready is right, what was acknowledged is ready."""
    settings = load({"store": str(store), "listen": ""}, {}).settings
    try:
        shelf = app.open_shelf(settings, Metrics("test"))
    except HotshelfError as error:
        yield f"the store does not open: {error}"
        return
    try:
        again = recover(shelf.layout, shelf.index, shelf.bundle_key)
        for field in fields(again):
            if count := getattr(again, field.name):
                yield f"a second start still found {count} {field.name}"
    finally:
        shelf.index.close()
        shelf.layout.close()
    with contextlib.closing(sqlite3.connect(f"file:{settings.index_path}?mode=ro", uri=True)) as index:
        yield from _index_wrongs(store, index, promises)
    yield from visible_wrongs(store)
    yield from (f"trash/ still holds {name}" for name in os.listdir(store / "trash"))


def _index_wrongs(store: pathlib.Path, index: sqlite3.Connection, promises: Iterable[Promise]) -> Iterator[str]:
    rows = dict(index.execute("SELECT digest, size FROM v_blobs WHERE state = 'ready'").fetchall())
    files = {f"sha256:{path.name}": path for path in (store / "blobs" / "sha256").glob("*/*")}
    yield from (f"the row of {digest} has no file" for digest in sorted(rows.keys() - files.keys()))
    yield from (f"the file of {digest} has no row" for digest in sorted(files.keys() - rows.keys()))
    for digest in sorted(rows.keys() & files.keys()):
        if files[digest].stat().st_size != rows[digest] or digest_of(files[digest]) != digest:
            yield f"the ready blob {digest} holds other bytes"
    states = dict(index.execute("SELECT revision, state FROM v_snapshots").fetchall())
    for revision in sorted(states):
        if states[revision] == "ready":
            yield from _snapshot_wrongs(store, index, revision)
    bound = dict(index.execute("SELECT key, revision FROM v_pipelines").fetchall())
    if sorted(bound) != (there := sorted(os.listdir(store / "pipelines"))):
        yield f"the index knows the pipelines {sorted(bound)}, the disk {there}"
    yield from (f"the pipeline {key} has no snapshot" for key, revision in sorted(bound.items()) if revision not in states)
    bundles = {f"{row[0]}/{row[1]}" for row in index.execute("SELECT environment_key, graph_key FROM v_bundles")}
    if bundles != (on_disk := {str(path.relative_to(store / "bundles")) for path in (store / "bundles").glob("*/*")}):
        yield f"the index knows the bundles {sorted(bundles)}, the disk {sorted(on_disk)}"
    for promise in promises:
        if states.get(promise.revision) != "ready":
            yield f"the acknowledged {promise.revision} is {states.get(promise.revision, 'lost')}"
            continue
        folder = store / "snapshots" / promise.revision.removeprefix("sha256:")
        for path, digest in promise.files.items():
            if not (folder / path).is_file() or digest_of(folder / path) != digest:
                yield f"the acknowledged {promise.revision} has a wrong {path}"


def _snapshot_wrongs(store: pathlib.Path, index: sqlite3.Connection, revision: str) -> Iterator[str]:
    hex_digits = revision.removeprefix("sha256:")
    listed = dict(index.execute("SELECT path, digest FROM v_files WHERE revision = ?", (revision,)).fetchall())
    folder = store / "snapshots" / hex_digits
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
    if found != set(listed):
        yield f"the ready snapshot {revision} holds {sorted(found)}, not {sorted(listed)}"
    record = store / "manifests" / f"{hex_digits}.json"
    try:
        recorded = Manifest.parse(record.read_bytes())
    except (OSError, HotshelfError) as error:
        yield f"the manifest of the ready {revision} is unusable: {error}"
        return
    if recorded.revision != revision:
        yield f"the manifest of the ready {revision} is another's"


def litter(store: pathlib.Path) -> list[str]:
    """What lies in ingest/: for a test that knows that nothing is to be resumed."""
    return sorted(os.listdir(store / "ingest"))
