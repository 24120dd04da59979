"""LoRAs that were read once, as tensors in memory: switching to one again reads no file.

The least recently used leave first, by bytes. Pipelines that carry an adapter share its tensors with this store and with
each other, and own them before anything writes into them (see `sharing`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False, slots=True)
class Adapters:
    """Values by (digest, how they were read). A value larger than `max_bytes` is not kept."""

    max_bytes: int
    _kept: OrderedDict[Any, tuple[Any, int]] = field(default_factory=OrderedDict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def get(self, key: object) -> Any | None:
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def keep(self, key: object, value: object, size: int) -> None:
        with self._lock:
            self._kept[key] = (value, size)
            self._kept.move_to_end(key)
            while self._kept and sum(size for _, size in self._kept.values()) > self.max_bytes:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    @property
    def bytes_held(self) -> int:
        with self._lock:
            return sum(size for _, size in self._kept.values())

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)
