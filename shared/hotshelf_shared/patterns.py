"""Which files of a tree are wanted: shell-style globs on relative paths, as in huggingface_hub."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Self

from hotshelf_shared.errors import InvalidRequest

MAX_PATTERNS = 256
MAX_PATTERN_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Patterns:
    """`allow` None means every file; a pattern ending in "/" means everything below that folder.

    Order and repetition do not matter, so both are normalised away: equal selections make equal values.
    """

    allow: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()

    @classmethod
    def parse(cls, allow: object = None, ignore: object = None) -> Self:
        """From a string, a list of strings or None each. Raises InvalidRequest."""
        return cls(None if allow is None else _globs("allow_patterns", allow), _globs("ignore_patterns", ignore or ()))

    def selects(self, path: str) -> bool:
        if self.allow is not None and not any(fnmatchcase(path, glob) for glob in self.allow):
            return False
        return not any(fnmatchcase(path, glob) for glob in self.ignore)

    def __bool__(self) -> bool:
        return self.allow is not None or bool(self.ignore)


#: No filter.
EVERYTHING = Patterns()


def _globs(field: str, value: object) -> tuple[str, ...]:
    globs = [value] if isinstance(value, str) else value
    if not isinstance(globs, Iterable):
        raise InvalidRequest(f"{field} is a list of globs, not {type(value).__name__}")
    kept = set()
    for glob in globs:
        if not isinstance(glob, str) or not glob or len(glob.encode()) > MAX_PATTERN_BYTES:
            raise InvalidRequest(f"{field} holds {str(glob)[:80]!r}, which is not a glob")
        kept.add(glob + "*" if glob.endswith("/") else glob)
    if len(kept) > MAX_PATTERNS:
        raise InvalidRequest(f"{field} has {len(kept)} globs; {MAX_PATTERNS} is the most")
    return tuple(sorted(kept))
