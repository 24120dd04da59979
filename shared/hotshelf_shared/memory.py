"""How much more may be in the page cache: what the machine and every control group above this process have to spare.

The page cache counts as available, since the kernel gives it up for more of it; what of it is to stay does not. Formats:
proc_meminfo(5), cgroups(7), and the kernel's documentation of the memory controllers of cgroup v1 and v2.
"""

from __future__ import annotations

from collections.abc import Iterator

from hotshelf_shared import cgroups

#: A part of what is available is left alone: it is an estimate, and whoever loads the weights needs some too.
MARGIN = 0.1

#: Limit, usage, and what of the usage is page cache.
_NAMES: dict[cgroups.Version, tuple[str, str, tuple[str, str]]] = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
}


def room(keep: int, *, root: str = "/") -> float:
    """Bytes that may be read into the page cache while `keep` bytes of it stay; inf when nothing is known."""
    return max(0.0, min((spare * (1 - MARGIN) - kept for spare, kept in _spare(keep, root)), default=float("inf")))


def _spare(keep: int, root: str) -> Iterator[tuple[int, int]]:
    """Of the machine and of each group: bytes available, and how many of those are to be kept."""
    for line in cgroups.lines(root, "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024, keep
    for version, folder in cgroups.folders("memory", root):
        limit_name, usage_name, file_names = _NAMES[version]
        limit, usage = (_number(root, f"{folder}/{name}") for name in (limit_name, usage_name))
        if limit is not None and usage is not None:
            stat = dict(line.split() for line in cgroups.lines(root, f"{folder}/memory.stat"))
            files = sum(int(stat.get(name, 0)) for name in file_names)
            yield max(0, limit - usage) + files, min(keep, files)  # pages that others read are on their account


def _number(root: str, path: str) -> int | None:
    """None for ``max``, and where there is no such file."""
    (text,) = cgroups.lines(root, path) or [""]
    return int(text) if text.isdecimal() else None
