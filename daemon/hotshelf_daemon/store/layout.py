"""The store's directory: opened once, locked against a second daemon, worked on through directory descriptors.

Invariant: while a `Layout` is open, its holder is the only writer below the root. No name from outside becomes a path
here except through checked digests, checked manifest paths and our own random names.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import time
from dataclasses import dataclass

from hotshelf_daemon.store import durable
from hotshelf_shared.errors import BadConfiguration

LOCK = ".lock"
_ON_ONE_DEVICE = ("blobs/sha256", "snapshots", "manifests", "pipelines", "bundles", "ingest", "trash")
FOLDERS = (
    *("blobs", "manifests", "refs", "pins", "snapshots", "pipelines", "bundles", "hub", "model_cache", "names"),
    *("ingest", "trash", "quarantine"),
)


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes and inodes of the store's file system."""

    total_bytes: int
    free_bytes: int
    free_inodes: int


class Layout:
    """Descriptors of the store's folders, by name, and the lock."""

    def __init__(self, root: str, *, group: int | None = None, lock_wait_s: float = 0) -> None:
        """Makes what is missing. `group` may read what is held; a predecessor that is just ending gets `lock_wait_s`.

        Raises BadConfiguration naming the setting.
        """
        self.root = root
        self._fds: dict[str, int] = {}
        self._shards: dict[str, int] = {}
        try:
            _make_root(root, group)
            self._fds[""] = durable.open_folder(root)
            self._check_owner(group)
            self._lock(lock_wait_s)
            for name in FOLDERS:
                durable.make_folder(self._fds[""], name)
                self._fds[name] = durable.open_folder(name, self._fds[""])
            durable.make_folder(self["blobs"], "sha256")
            self._fds["blobs/sha256"] = durable.open_folder("sha256", self["blobs"])
            self._check_devices()
        except OSError as error:
            self.close()
            reason = f"the store {root} cannot be used: {error.strerror or error}"
            raise BadConfiguration(reason, hint="Set `store` (PIPELINE_STORE) to a directory this user may write.") from error
        except BaseException:
            self.close()
            raise

    def __getitem__(self, folder: str) -> int:
        return self._fds[folder]

    def shard(self, hex_digits: str) -> int:
        """The directory of blobs whose digest begins so, made when new."""
        name = hex_digits[:2]
        if name not in self._shards:
            durable.make_folder(self["blobs/sha256"], name)
            self._shards[name] = durable.open_folder(name, self["blobs/sha256"])
        return self._shards[name]

    def path(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)

    def room(self) -> Room:
        seen = os.fstatvfs(self[""])
        return Room(seen.f_blocks * seen.f_frsize, seen.f_bavail * seen.f_frsize, seen.f_favail if seen.f_files else 1 << 40)

    def folder_bytes(self, folder: str) -> int:
        """Bytes of the files directly in a folder: trash and quarantine, which are small or empty."""
        total = 0
        with os.scandir(self[folder]) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else 0
        return total

    def discard(self, folder: int, name: str) -> None:
        """Out of sight in one rename, then gone: a crash between leaves it in trash/, which the next start empties."""
        unseen = f"{secrets.token_hex(8)}-{name}"
        os.rename(name, unseen, src_dir_fd=folder, dst_dir_fd=self["trash"])
        self.remove("trash", unseen)

    def quarantine(self, folder: int, name: str) -> str:
        """Keeps something wrong for the operator to look at, where nobody will use it. Its new name."""
        kept = f"{name}.{secrets.token_hex(4)}"
        os.rename(name, kept, src_dir_fd=folder, dst_dir_fd=self["quarantine"])
        os.fsync(self["quarantine"])
        return kept

    def remove(self, folder: str, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self[folder])
        except IsADirectoryError:
            shutil.rmtree(name, dir_fd=self[folder])

    def close(self) -> None:
        """Gives the lock up last."""
        for fd in [*self._shards.values(), *reversed(self._fds.values())]:
            os.close(fd)
        self._shards.clear()
        self._fds.clear()

    def _check_owner(self, group: int | None) -> None:
        seen = os.fstat(self._fds[""])
        if seen.st_mode & stat.S_IWOTH:
            raise BadConfiguration(
                f"the store {self.root} is writable by everyone",
                hint=f"chmod o-w {self.root}, or set `store` (PIPELINE_STORE) to a directory below it.",
            )
        if group is not None and seen.st_gid != group and seen.st_uid == os.geteuid():
            os.fchown(self._fds[""], -1, group)
            os.fchmod(self._fds[""], stat.S_IMODE(seen.st_mode) | stat.S_ISGID | 0o050)

    def _lock(self, wait_s: float) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = self._fds["lock"] = os.open(LOCK, flags, 0o600, dir_fd=self._fds[""])
        until = time.monotonic() + wait_s
        while not _flock(fd):
            if time.monotonic() >= until:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
                raise BadConfiguration(
                    f"another hotshelfd (pid {holder or 'unknown'}) works on the store {self.root}",
                    hint="Stop it, or give this one a `store` (PIPELINE_STORE) of its own.",
                )
            time.sleep(0.05)
        os.ftruncate(self._fds["lock"], 0)
        os.pwrite(self._fds["lock"], f"{os.getpid()}\n".encode(), 0)

    def _check_devices(self) -> None:
        """Renames are the commit: everything that is renamed must lie on one file system."""
        devices = {name: os.fstat(self[name]).st_dev for name in _ON_ONE_DEVICE}
        if len(set(devices.values())) > 1:
            raise BadConfiguration(
                f"folders of the store {self.root} lie on different file systems",
                hint="Mount one volume at `store` (PIPELINE_STORE), none below it.",
            )


def _flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_root(root: str, group: int | None) -> None:
    if os.path.isdir(root):
        return
    os.makedirs(root, 0o750)
    if group is not None:
        os.chown(root, -1, group)
    os.chmod(root, 0o2750)
