"""One compile cache: from the shelf into the local directories, and back.

Invariant: what is on the shelf for this name is never replaced; what is on this disk is never replaced either.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hotshelf import compiling
from hotshelf.archive import Limits
from hotshelf.client import Client
from hotshelf.compile_cache import local, working
from hotshelf.compile_cache.settings import Settings
from hotshelf.compile_cache.status import CacheError, CacheOperationInterrupted, OperationStatus
from hotshelf_shared.bundle import BundleName
from hotshelf_shared.errors import HotshelfError, InsufficientSpace, NotFound

log = logging.getLogger("b10_transfer")
FETCH_TIMEOUT_S = 60.0
KEEP_TIMEOUT_S = 600.0
SLOT_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Cache:
    """`where` are the local directories by their names in a bundle; `main` is the one whose files make a cache of it."""

    client: Client
    settings: Settings
    name: BundleName
    where: Mapping[str, Path]
    main: str

    def load(self, *, wait: bool = False) -> OperationStatus:
        """`wait` for a daemon that is not up yet. Raises CacheError."""
        if self.local_size:
            log.info("there is a local compile cache in %s: bundle:%s is not loaded", self.where[self.main], self.name)
            return OperationStatus.SKIPPED
        with self._at_work():
            if not wait:
                self.client.status()
            with working.slot(self.settings.work_dir, "load", most=working.LOADS, patience_s=SLOT_TIMEOUT_S) as folder:
                into, most = folder / "unpacked", self.settings.max_archive_bytes
                tree = compiling.fetch(self.client, self.name, into, timeout=FETCH_TIMEOUT_S, max_archive_bytes=most)
                if tree is None:
                    log.info("there is no bundle:%s yet", self.name)
                    return OperationStatus.DOES_NOT_EXIST
                if not any(path.startswith(f"{self.main}/") for path in tree):
                    raise CacheError(f"bundle:{self.name} holds nothing for {self.where[self.main]}")
                new = compiling.merge(into, self.where)
        log.info("loaded bundle:%s: %d files, %d bytes, %d of them new", self.name, len(tree), tree.size, new)
        return OperationStatus.SUCCESS

    def save(self) -> OperationStatus:
        """Raises CacheError."""
        with self._at_work():
            if self.shelf_size is not None:
                log.info("bundle:%s is on the shelf already", self.name)
                return OperationStatus.SKIPPED
            with working.slot(
                self.settings.work_dir, "save", most=self.settings.max_saves, patience_s=SLOT_TIMEOUT_S
            ) as folder:
                taken = compiling.gather(folder / "gathered", self.where)
                if not (folder / "gathered" / self.main).is_dir():
                    raise CacheError(f"there is no compile cache in {self.where[self.main]}: compile something first")
                _check_room(folder, taken.size)
                kept = compiling.keep(
                    self.client,
                    self.name,
                    folder / "gathered",
                    timeout=KEEP_TIMEOUT_S,
                    limits=Limits(),
                    max_archive_bytes=self.settings.max_archive_bytes,
                )
        log.info("bundle:%s: %s, %d files packed into %d bytes", self.name, kept.outcome.value, taken.files, kept.size)
        return OperationStatus.SUCCESS if kept.outcome is compiling.Outcome.BOUND else OperationStatus.SKIPPED

    @property
    def local_size(self) -> int:
        """In bytes; 0 when there is none."""
        return local.size_of({self.main: self.where[self.main]})

    @property
    def shelf_size(self) -> int | None:
        """The archive's, in bytes; None when there is none that this process may lease. Raises HotshelfError."""
        try:
            return int(self.client.bundle(self.name.environment_key, self.name.graph_key)["size"])
        except NotFound:
            return None

    @property
    def is_shared(self) -> bool:
        """Whether the daemon answers and nobody switched it off."""
        try:
            return self.settings.enabled and bool(self.client.status())
        except HotshelfError as error:
            log.debug("no daemon: %s", error)
            return False

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Every failure as one of b10-transfer's."""
        if not self.settings.enabled:
            raise CacheError("BASETEN_FS_ENABLED=0 switches the shared cache off")
        try:
            yield
        except InsufficientSpace as error:
            raise CacheOperationInterrupted(str(error)) from error
        except HotshelfError as error:
            raise CacheError(str(error)) from error


def _check_room(folder: Path, need: int) -> None:
    """Of an archive no more is known beforehand than that it is hardly larger than what goes into it."""
    room = os.statvfs(folder)
    if (free := room.f_bavail * room.f_frsize) < need:
        raise CacheOperationInterrupted(f"packing may need {need:,} bytes in {folder.parent}, and {free:,} are free")
