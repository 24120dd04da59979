"""Carrying: a bundle from the shelf into a fresh folder, and a folder onto the shelf as a bundle.

Invariant: only what the daemon's lease names, byte for byte, is unpacked; the lease is let go of when that is done.
"""

from __future__ import annotations

import enum
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hotshelf import archive
from hotshelf.archive import LIMITS, Limits
from hotshelf.client import Client
from hotshelf_shared.bundle import ARCHIVE, BundleName
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import Conflict, HotshelfError, IntegrityError, NotFound, TooLarge
from hotshelf_shared.manifest import Manifest


class Outcome(enum.Enum):
    """What became of a folder that was to be kept."""

    #: It is on the shelf from now on.
    BOUND = "bound"
    #: This very archive was there already.
    SAME = "same"
    #: Another archive was first under this name; it stays.
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Kept:
    """`digest` and `size` (bytes) are of the archive that was packed, whether or not it is the one on the shelf."""

    outcome: Outcome
    digest: Digest
    size: int


def fetch(
    client: Client,
    name: BundleName,
    into: Path,
    *,
    timeout: float,
    limits: Limits = LIMITS,
    max_archive_bytes: int | None = None,
) -> Manifest | None:
    """Unpacks the bundle into the fresh folder `into`; what it holds, or None when there is none for this process.

    `timeout` in seconds, for the lease. Raises HotshelfError: DaemonUnavailable, Timeout, IntegrityError, TooLarge,
    InsufficientSpace; then there is no `into`.
    """
    try:
        lease = client.acquire(f"bundle:{name}", timeout=timeout)
    except NotFound:
        return None
    with lease:
        entry = lease.files.get(ARCHIVE)
        if entry is None:
            raise IntegrityError(f"bundle:{name} was leased without an archive")
        _check_size(entry.size, max_archive_bytes)
        return archive.unpack(lease.path / ARCHIVE, into, digest=entry.digest, limits=limits)


def keep(
    client: Client,
    name: BundleName,
    folder: Path,
    *,
    timeout: float,
    limits: Limits = LIMITS,
    max_archive_bytes: int | None = None,
) -> Kept:
    """Packs `folder` and binds it. The archive lies beside `folder` for as long as that takes.

    `timeout` in seconds, for the hand-in. Raises HotshelfError: InvalidRequest for anything but files and folders in it,
    TooLarge, InsufficientSpace (here or on the shelf), DaemonUnavailable, Timeout.
    """
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=folder.parent) as private:
        packed = Path(private) / ARCHIVE
        entry = archive.pack(folder, packed, limits=limits)
        _check_size(entry.size, max_archive_bytes)
        if _bound(client, name) == entry.digest:
            return Kept(Outcome.SAME, entry.digest, entry.size)
        return Kept(_bind(client, name, packed, timeout=timeout), entry.digest, entry.size)


def _check_size(size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise TooLarge(
            f"the compile cache's archive is {size:,} bytes; {most:,} is the most",
            hint="Raise MAX_CACHE_SIZE_MB, or clear the local cache before compiling.",
        )


def _bind(client: Client, name: BundleName, packed: Path, *, timeout: float) -> Outcome:
    try:
        try:
            client.put_bundle(name.environment_key, name.graph_key, packed, timeout=timeout)
        except NotFound:  # the bytes that the shelf had of it were wrong: they are out of the way now, and ours are sent
            client.put_bundle(name.environment_key, name.graph_key, packed, timeout=timeout)
    except Conflict:
        return Outcome.OTHER
    return Outcome.BOUND


def _bound(client: Client, name: BundleName) -> Digest | None:
    """The archive that this process would be leased under the name."""
    try:
        found = client.bundle(name.environment_key, name.graph_key).get("digest")
    except NotFound:
        return None
    if not isinstance(found, str):
        raise HotshelfError(f"the daemon tells no digest of bundle:{name}")
    return Digest.parse(found)
