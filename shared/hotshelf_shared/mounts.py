"""Which kind of file system a path lies on, as /proc/self/mountinfo tells it, and what that kind can be trusted with."""

from __future__ import annotations

import os
import re

_NETWORK = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2"),
        *("orangefs", "pvfs2", "smb2", "smb3", "smbfs", "virtiofs", "wekafs"),
    )
)
_IN_MEMORY = frozenset(("devtmpfs", "hugetlbfs", "ramfs", "tmpfs"))
_OCTAL = re.compile(rb"\\([0-7]{3})")


def is_network(kind: str) -> bool:
    """Whether every page of it is fetched by somebody else: another machine, or a process (``fuse`` of any kind)."""
    return kind in _NETWORK or kind.startswith("fuse")


def is_in_memory(kind: str) -> bool:
    """Whether its files have no other place than memory."""
    return kind in _IN_MEMORY


def file_system_of(path: str | os.PathLike[str]) -> str:
    """The type of the file system that holds `path`, links followed ("ext4"); "" when it cannot be told."""
    try:
        with open("/proc/self/mountinfo", "rb") as mounts:
            return kind_of(os.path.realpath(path), mounts.read())
    except OSError:
        return ""


def kind_of(path: str, mountinfo: bytes) -> str:
    """The type of the mount nearest above `path`, which is absolute and without links; "" when there is none.

    The form of `mountinfo` is proc_pid_mountinfo(5)'s. Of mounts on the same point the last one hides the others.
    """
    real, best, kind = os.fsencode(path), b"", b""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(b" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 5 or not kinds:
            continue
        point = _OCTAL.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), fields[4])
        if (real == point or real.startswith(point.rstrip(b"/") + b"/")) and len(point) >= len(best):
            best, kind = point, kinds[0]
    return os.fsdecode(kind)
