"""The in-memory tier: clean base components by content, shared by every pipeline of the process.

The cache holds weights, not pipelines, so a clean base is a fact and not a procedure. Thread-safe: one build per key
while others wait. Entries leave the least recently used first; a pipeline in use keeps its weights alive by itself.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hotshelf.lease import Lease
from hotshelf.pipelines.sharing import weight_bytes

if TYPE_CHECKING:
    import torch

DEFAULT_PIPELINES = 4


@dataclass(frozen=True, slots=True)
class ComponentKey:
    """What makes two components the same: content, class, dtype, device."""

    digest: str
    class_name: str
    dtype: str | None
    device: str | None
    variant: str | None = None


@dataclass(slots=True)
class _Entry:
    module: torch.nn.Module
    size: int
    leases: tuple[Lease, ...]


@dataclass(slots=True)
class PipelineCache:
    """`max_bytes` bounds the weights kept, `max_pipelines` the number of base pipelines; None is no bound."""

    max_bytes: int | None = None
    max_pipelines: int | None = DEFAULT_PIPELINES
    _entries: OrderedDict[ComponentKey, _Entry] = field(default_factory=OrderedDict)
    _bases: OrderedDict[Hashable, tuple[ComponentKey, ...]] = field(default_factory=OrderedDict)
    _building: dict[Hashable, threading.Lock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: ComponentKey) -> torch.nn.Module | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry.module

    def keep(self, base: Hashable, modules: dict[ComponentKey, torch.nn.Module], leases: tuple[Lease, ...]) -> None:
        """Keeps a base's clean components, together with the leases on the files they map."""
        with self._lock:
            for key, module in modules.items():
                if key not in self._entries:
                    self._entries[key] = _Entry(module, weight_bytes(module), leases)
                self._entries.move_to_end(key)
            self._bases[base] = tuple(modules)
            self._bases.move_to_end(base)
            self._shrink()

    @contextmanager
    def building(self, key: Hashable) -> Iterator[None]:
        """One at a time per key: who comes later finds the result."""
        with self._lock:
            lock = self._building.setdefault(key, threading.Lock())
        with lock:
            yield

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._bases.clear()

    @property
    def bytes_held(self) -> int:
        with self._lock:
            return sum(entry.size for entry in self._entries.values())

    def __len__(self) -> int:
        with self._lock:
            return len(self._bases)

    def _shrink(self) -> None:
        while self.max_pipelines is not None and len(self._bases) > self.max_pipelines:
            self._bases.popitem(last=False)
            still = {key for keys in self._bases.values() for key in keys}
            for key in [key for key in self._entries if key not in still]:
                del self._entries[key]
        held = sum(entry.size for entry in self._entries.values())
        while self.max_bytes is not None and held > self.max_bytes and self._entries:
            key, entry = self._entries.popitem(last=False)
            held -= entry.size
            for base in [base for base, keys in self._bases.items() if key in keys]:
                del self._bases[base]


_DEFAULT: list[PipelineCache] = []


def process_cache() -> PipelineCache:
    """The one that `load_pipeline` uses unless it is given another."""
    if not _DEFAULT:
        _DEFAULT.append(PipelineCache())
    return _DEFAULT[0]
