"""A small real file system in a file, mounted through a loop device, whose power can be cut. Needs root."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import struct
import subprocess
import tempfile
from collections.abc import Iterator

from tests.waiting import wait_until

#: _IOR('X', 125, __u32): the shutdown ioctl that ext4 and xfs both answer.
_SHUTDOWN = 0x8004587D
#: Whether the kernel may still write its journal out. Neither writes data that was not synced.
FLUSH_LOG, NO_FLUSH = 1, 2
_MKFS = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}


def _run(*argv: str | pathlib.Path) -> None:
    done = subprocess.run([str(part) for part in argv], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}: {done.stderr}"


class Volume:
    """Mounted at `path`. `cut()` ends it as a power cut would; `mount()` brings back what had reached the disk."""

    def __init__(self, folder: pathlib.Path, kind: str, size_mib: int) -> None:
        number, image = tempfile.mkstemp(suffix=".img", dir=folder)  # never one that a loop device may still hold
        self.image, self.path = pathlib.Path(image), folder / "mounted"
        self.path.mkdir(exist_ok=True)
        with os.fdopen(number, "wb") as file:
            file.truncate(size_mib << 20)
        _run(*_MKFS[kind], self.image)

    def mount(self) -> None:
        _run("mount", "-o", "loop", self.image, self.path)

    def cut(self, how: int) -> None:
        """Nothing reaches the disk after this. Whoever still writes gets errors: kill them, then `unmount`."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", how))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Waits for the last of its users to be gone."""

        def gone() -> bool:
            return subprocess.run(["umount", str(self.path)], check=False, capture_output=True).returncode == 0

        wait_until(gone, every_s=0.05, what=f"{self.path} to be unmounted")


@contextlib.contextmanager
def mounted(folder: pathlib.Path, kind: str = "ext4", size_mib: int = 320) -> Iterator[Volume]:
    """A fresh one; unmounted whatever happens."""
    volume = Volume(folder, kind, size_mib)
    volume.mount()
    try:
        yield volume
    finally:
        subprocess.run(["umount", "-l", str(volume.path)], check=False, capture_output=True)
        volume.image.unlink()
