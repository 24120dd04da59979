"""The variables of b10-transfer, and what they mean where hotshelfd is the shared file system.

`BASETEN_FS_ENABLED=0` switches the shelf off; otherwise it is on where the daemon answers. `B10FS_CACHE_DIR` named a shared
folder: nothing is read or written there, for a folder that anybody may write is no place for code, but as two folders were two
caches, its text is part of the bundle's name. `LOCAL_WORK_DIR` is where archives are packed and unpacked.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from hotshelf.compile_cache.status import CacheValidationError

_WORK_DIR = "/app"
_MAX_CACHE_SIZE_MB = "1024"
_MAX_CONCURRENT_SAVES = "50"
_OFF = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Settings:
    """`namespace` is empty when the program that calls is to tell models apart."""

    enabled: bool
    namespace: str
    place: str
    work_dir: Path
    max_archive_bytes: int
    max_saves: int

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Raises CacheValidationError, naming the variable."""
        return cls(
            enabled=environment.get("BASETEN_FS_ENABLED", "").strip().lower() not in _OFF,
            namespace=environment.get("HOTSHELF_BUNDLE_NAMESPACE", "").strip(),
            place=environment.get("B10FS_CACHE_DIR", ""),
            work_dir=_work_dir(environment.get("LOCAL_WORK_DIR", "")),
            max_archive_bytes=int(_number(environment, "MAX_CACHE_SIZE_MB", _MAX_CACHE_SIZE_MB) * 1024 * 1024),
            max_saves=math.ceil(_number(environment, "MAX_CONCURRENT_SAVES", _MAX_CONCURRENT_SAVES)),
        )


def _work_dir(given: str) -> Path:
    """Where nothing is given: b10-transfer's own, if there is one that can be written, else the temporary folder."""
    if given:
        if not os.path.isabs(given):
            raise CacheValidationError(f"LOCAL_WORK_DIR is an absolute path, not {given[:80]!r}")
        return Path(given)
    try:
        return Path(_WORK_DIR if os.access(_WORK_DIR, os.W_OK | os.X_OK) else tempfile.gettempdir())
    except OSError as error:
        raise CacheValidationError(f"there is no place to work in: {error.strerror}; set LOCAL_WORK_DIR") from error


def _number(environment: Mapping[str, str], name: str, default: str) -> float:
    text = environment.get(name) or default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e9:
        raise CacheValidationError(f"{name} is a number above 0, not {text[:80]!r}")
    return value
