"""The origin's in-memory twin: a dictionary that can go offline, and remembers what was asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5

from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin.port import Body, Changed
from hotshelf_shared.errors import IntegrityError, OriginUnavailable


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)

    def readinto(self, buffer: memoryview, /) -> int:
        taken = min(len(buffer), len(self._left))
        buffer[:taken] = self._left[:taken]
        self._left = self._left[taken:]
        return taken


class MemoryOrigin:
    """`objects` maps key → bytes, `checksums` key → what is kept of them, a CRC32C told unasked.

    `requests` is a list of (verb, key, start, stop).
    """

    def __init__(self, name: str = "memory://test", label: str = "memory") -> None:
        self.name = name
        self.label = label
        self.offline = False
        self.objects: dict[str, bytes] = {}
        self.checksums: dict[str, Checksum] = {}
        self.requests: list[tuple[str, str, int, int]] = []

    def head(self, key: str) -> OriginObject | None:
        self._ask("head", key)
        return self._object(key) if key in self.objects else None

    def checksum(self, obj: OriginObject) -> Checksum | None:
        self._ask("checksum", obj.key)
        return self.checksums.get(obj.key)

    def list(self, folder: str) -> Iterator[OriginObject]:
        self._ask("list", folder)
        below = f"{folder}/" if folder else ""
        for key in sorted(self.objects):
            if key.startswith(below) and not key.endswith("/"):
                yield self._object(key)

    def read(self, key: str, limit: int) -> bytes | None:
        self._ask("read", key)
        data = self.objects.get(key)
        if data is not None and len(data) > limit:
            raise IntegrityError(f"{key} is {len(data):,} bytes; {limit:,} is the most here")
        return data

    @contextmanager
    def open(self, obj: OriginObject, start: int, stop: int) -> Iterator[Body]:
        self._ask("open", obj.key, start, stop)
        if obj.key not in self.objects or (obj.version and self._object(obj.key).version != obj.version):
            raise Changed(f"{obj.key} changed at the origin")
        yield _Bytes(self.objects[obj.key][start:stop])

    def bytes_served(self) -> int:
        return sum(stop - start for verb, _, start, stop in self.requests if verb == "open")

    def _ask(self, verb: str, key: str, start: int = 0, stop: int = 0) -> None:
        self.requests.append((verb, key, start, stop))
        if self.offline:
            raise OriginUnavailable(f"the origin {self.label} is offline")

    def _object(self, key: str) -> OriginObject:
        data = self.objects[key]
        kept = self.checksums.get(key)
        told = kept if kept is not None and kept.algorithm == "CRC32C" else None
        return OriginObject(key, len(data), md5(data, usedforsecurity=False).hexdigest(), told)
