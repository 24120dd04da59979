"""The key that bundles are signed with: the operator's file, or one made for this store that only the daemon can read.

The store's own lies beside the lock, 0600 and the daemon's: workers mount the store, but not as its owner. Whoever holds
the key can make any worker run any code, so a key that others could have read or written is none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat

from hotshelf_daemon.store import durable
from hotshelf_daemon.store.layout import Layout
from hotshelf_shared.errors import BadConfiguration

log = logging.getLogger(__name__)
NAME = ".bundles.key"
LEAST_BYTES, MOST_BYTES = 32, 4_096
_FOREIGN_BITS = stat.S_IRWXG | stat.S_IRWXO


def bundle_key(layout: Layout, key_file: str | None) -> bytes:
    """Raises BadConfiguration when the operator's file is no key; the store's own is made anew when it is none."""
    return _configured(key_file) if key_file is not None else _own(layout)


def _configured(path: str) -> bytes:
    """A mounted secret is often readable by its group, and a link: both are the operator's to decide."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error), "Name a file that the daemon can read.") from error
    try:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode):
            raise _unusable(path, "it is no regular file", "Name a file.")
        if seen.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
            raise _unusable(path, "others may read or write it", f"chmod 0600 {path}.")
        key = os.pread(fd, MOST_BYTES + 1, 0).strip()
    finally:
        os.close(fd)
    if not LEAST_BYTES <= len(key) <= MOST_BYTES:
        raise _unusable(path, f"it holds {len(key)} bytes", f"Write {LEAST_BYTES} random bytes or more: openssl rand -hex 32.")
    return key


def _unusable(path: str, why: str, hint: str) -> BadConfiguration:
    return BadConfiguration(f"bundles.key_file: {path} cannot be used: {why}", hint=hint)


def _own(layout: Layout) -> bytes:
    if (key := _read_own(layout)) is not None:
        return key
    if durable.exists(layout[""], NAME):
        layout.discard(layout[""], NAME)
        log.warning("the store's key could have been somebody else's: a new one is made, and bundles have to be built anew")
    key = secrets.token_hex(LEAST_BYTES).encode()
    with durable.disk_errors("making the key that bundles are signed with"):
        _write_own(layout, key)
    return key


def _read_own(layout: Layout) -> bytes | None:
    """None when there is none, or one that others could have read or written."""
    try:
        fd = os.open(NAME, durable.READ_ONLY_FLAGS, dir_fd=layout[""])
    except OSError:
        return None
    try:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & _FOREIGN_BITS:
            return None
        key = os.pread(fd, MOST_BYTES, 0)
        return key if len(key) == 2 * LEAST_BYTES else None
    finally:
        os.close(fd)


def _write_own(layout: Layout, key: bytes) -> None:
    """Whole under its name, or not there: a crash half-way leaves a stranger in ingest/, which the next start removes."""
    unseen = f"{secrets.token_hex(8)}.key"
    fd = durable.create(layout["ingest"], unseen, 0)
    try:
        try:
            durable.pwrite_all(fd, memoryview(key), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        durable.rename_new(layout["ingest"], unseen, layout[""], NAME)
    except BaseException:
        with contextlib.suppress(OSError):
            layout.remove("ingest", unseen)
        raise
    os.fsync(layout[""])
