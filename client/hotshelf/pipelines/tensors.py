"""What a safetensors file says of itself in its header, read without torch."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

MAX_HEADER_BYTES = 16 << 20


def stored_dtypes(path: Path) -> frozenset[str]:
    """The dtypes of its tensors, by safetensors' names (``F32``, ``F16``, …). Empty for what is no safetensors file."""
    return frozenset(dtype for dtype, _ in _header(path).values())


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by its name."""
    return {name: shape for name, (_, shape) in _header(path).items()}


def _header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    try:
        seen = os.stat(path)
    except OSError:
        return {}
    return _read(os.path.realpath(path), seen.st_ino, seen.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _read(path: str, _inode: int, _changed_ns: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= MAX_HEADER_BYTES else {}
        entries = {name: one for name, one in header.items() if name != "__metadata__"}
        return {name: (str(one["dtype"]), tuple(map(int, one["shape"]))) for name, one in entries.items()}
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return {}  # the library that loads it says better what is wrong with it
