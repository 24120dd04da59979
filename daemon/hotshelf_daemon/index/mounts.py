"""Which file system a path lies on, and whether SQLite's write-ahead log is safe there."""

from __future__ import annotations

import os

from hotshelf_shared.errors import BadConfiguration

NETWORK_FILE_SYSTEMS = frozenset(
    ("9p", "afs", "ceph", "cifs", "gfs2", "glusterfs", "lustre", "nfs", "nfs4", "ocfs2", "smb2", "smb3", "smbfs", "virtiofs")
)


def refuse_network_file_system(path: str) -> None:
    """WAL needs shared memory that network file systems do not give. Decided from mountinfo, before any pragma."""
    kind = file_system_of(os.path.dirname(path))
    if kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse"):
        raise BadConfiguration(
            f"the index {path} lies on {kind}, where SQLite's write-ahead log is unsafe",
            hint="Set index.path to a file on a local disk; it is rebuilt from the store when lost.",
        )


def file_system_of(path: str) -> str:
    """The type of the file system that holds `path` ("ext4"), from /proc/self/mountinfo; "" when it cannot be told."""
    real = os.path.realpath(path)
    best, kind = "", ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
            for line in mounts:
                left, _, right = line.partition(" - ")
                point = left.split()[4].encode().decode("unicode_escape")
                if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
                    best, kind = point, right.split()[0]
    except OSError:
        return ""
    return kind
