"""The in-memory tier: clean base components by content, shared by every pipeline of the process.

The cache holds weights, not pipelines, so a clean base is a fact and not a procedure. Thread-safe: one build per base
while others wait. What was used longest ago leaves first; a pipeline in use keeps its weights alive by itself.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hotshelf.pipelines.files import Files
from hotshelf.pipelines.sharing import weight_bytes
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import InvalidRequest

if TYPE_CHECKING:
    import torch

    from hotshelf.lease import Lease
    from hotshelf.pipelines.order import PipelineOrder

DEFAULT_PIPELINES = 4
MAX_RECALLED = 256


@dataclass(frozen=True, slots=True)
class ComponentKey:
    """What makes two components the same: content, class, dtype, device."""

    digest: Digest
    class_name: str
    dtype: str | None
    device: str
    variant: str | None


@dataclass(frozen=True, slots=True)
class BaseKey:
    """What makes two bases the same."""

    revision: Revision
    dtype: str | None
    device: str
    variant: str | None

    @classmethod
    def of(cls, order: PipelineOrder, files: Files) -> BaseKey:
        return cls(files.base.revision, order.dtype, order.base_device, order.variant)

    def serves(self, order: PipelineOrder, files: Files) -> bool:
        """Whether the order may turn out to be for this base: what device ``auto`` is is known once torch is."""
        other = BaseKey.of(order, files)
        return self == (replace(other, device=self.device) if order.device == "auto" else other)


@dataclass(frozen=True, slots=True)
class _Entry:
    module: torch.nn.Module
    size: int


@dataclass(frozen=True, slots=True)
class _Base:
    """`leases` are held for as long as this is: the components may be mapped from the files."""

    keys: tuple[ComponentKey, ...]
    leases: tuple[Lease, ...]


@dataclass(eq=False, slots=True)
class PipelineCache:
    """`max_bytes` bounds the weights kept, `max_pipelines` the number of base pipelines; None is no bound."""

    max_bytes: int | None = None
    max_pipelines: int | None = DEFAULT_PIPELINES
    _entries: OrderedDict[ComponentKey, _Entry] = field(default_factory=OrderedDict, init=False, repr=False)
    _bases: OrderedDict[BaseKey, _Base] = field(default_factory=OrderedDict, init=False, repr=False)
    _recalled: OrderedDict[Any, Files] = field(default_factory=OrderedDict, init=False, repr=False)
    _building: dict[BaseKey, _Turn] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pipelines"):
            bound = getattr(self, name)
            if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int) or bound < 0):
                raise InvalidRequest(f"{name} is a number from 0 up or None, not {bound!r}")

    def get(self, key: ComponentKey) -> torch.nn.Module | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry.module

    def keep(self, base: BaseKey, modules: Mapping[ComponentKey, torch.nn.Module], leases: tuple[Lease, ...]) -> None:
        """Keeps a base's clean components, together with the leases on the files they map."""
        with self._lock:
            for key, module in modules.items():
                if key not in self._entries:
                    self._entries[key] = _Entry(module, weight_bytes(module))
                self._entries.move_to_end(key)
            if base not in self._bases:
                self._bases[base] = _Base(tuple(modules), leases)
            self._bases.move_to_end(base)
            self._shrink()

    def __contains__(self, base: BaseKey) -> bool:
        """Whether all of a base's weights are in memory."""
        with self._lock:
            return base in self._bases

    # ---- what a wish was answered with, for when nobody answers

    def remember(self, wish: object, files: Files) -> None:
        with self._lock:
            self._recalled[wish] = files.unleased
            self._recalled.move_to_end(wish)
            while len(self._recalled) > MAX_RECALLED:
                self._recalled.popitem(last=False)

    def recall(self, wish: object, order: PipelineOrder) -> Files | None:
        """The files, when the base's weights are in memory and the rest still lies where it lay."""
        with self._lock:
            files = self._recalled.get(wish)
            if files is None or not any(base.serves(order, files) for base in self._bases):
                return None
        paths = (files.base.path, *(lora.path for lora in files.loras))
        return files if all(map(os.path.exists, paths)) else None

    @contextmanager
    def building(self, base: BaseKey) -> Iterator[None]:
        """One at a time per base: who comes later finds the result."""
        with self._lock:
            turn = self._building.setdefault(base, _Turn())
            turn.waiting += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._lock:
                turn.waiting -= 1
                if not turn.waiting:
                    self._building.pop(base, None)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._bases.clear()
            self._recalled.clear()

    @property
    def bytes_held(self) -> int:
        with self._lock:
            return sum(entry.size for entry in self._entries.values())

    def __len__(self) -> int:
        """The number of base pipelines."""
        with self._lock:
            return len(self._bases)

    def __bool__(self) -> bool:
        return True  # an empty cache is still one

    def _shrink(self) -> None:
        while self.max_pipelines is not None and len(self._bases) > self.max_pipelines:
            self._bases.popitem(last=False)
        self._drop_unused()
        while self.max_bytes is not None and self._bases and self.bytes_held > self.max_bytes:
            self._bases.popitem(last=False)
            self._drop_unused()

    def _drop_unused(self) -> None:
        used = {key for base in self._bases.values() for key in base.keys}
        for key in [key for key in self._entries if key not in used]:
            del self._entries[key]


@dataclass(slots=True)
class _Turn:
    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: int = 0


_DEFAULT: list[PipelineCache] = []


def process_cache() -> PipelineCache:
    """The one that `load_pipeline` uses unless it is given another."""
    if not _DEFAULT:
        _DEFAULT.append(PipelineCache())
    return _DEFAULT[0]
