"""The in-memory tier: clean components by content, shared by every pipeline of the process.

The cache holds weights, not pipelines, so a clean base is a fact and not a procedure. Thread-safe: one build per
foundation while others wait. What was used longest ago leaves first; a pipeline in use keeps its weights alive by itself.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hotshelf.pipelines import explanation, recipes
from hotshelf.pipelines.adapters import Adapters
from hotshelf.pipelines.files import Files
from hotshelf.pipelines.sharing import weight_bytes
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    import torch

    from hotshelf.lease import Lease
    from hotshelf.pipelines.order import PipelineOrder

DEFAULT_PIPELINES = 4
DEFAULT_ADAPTER_BYTES = 1 << 30
MAX_RECALLED = 256


@dataclass(frozen=True, slots=True)
class ComponentKey:
    """What makes two components the same: content, class, dtype, device, quantization."""

    digest: Digest
    class_name: str
    dtype: str | None
    device: str
    variant: str | None = None
    quantization: str | None = None


@dataclass(frozen=True, slots=True)
class BaseKey:
    """What makes two foundations the same: the key of their recipe, and where they are."""

    foundation: str
    device: str

    @classmethod
    def of(cls, order: PipelineOrder, files: Files) -> BaseKey:
        return cls(recipes.foundation(order, files).key, order.base_device)

    def serves(self, order: PipelineOrder, files: Files) -> bool:
        """Whether the order may turn out to be for this base: what device ``auto`` is is known once torch is."""
        other = BaseKey.of(order, files)
        return self == (replace(other, device=self.device) if order.device == "auto" else other)


@dataclass(frozen=True, slots=True)
class _Entry:
    module: torch.nn.Module
    size: int


@dataclass(slots=True)
class _Base:
    """`leases` are held for as long as this is: the components may be mapped from the files."""

    keys: Mapping[str, ComponentKey]
    leases: tuple[Lease, ...]
    pinned: bool = False


@dataclass(eq=False, slots=True)
class PipelineCache:
    """`max_bytes` bounds the weights kept, `max_pipelines` the number of base pipelines; None is no bound.

    Adapters that were read once are kept beside them, up to `max_adapter_bytes`.
    """

    max_bytes: int | None = None
    max_pipelines: int | None = DEFAULT_PIPELINES
    max_adapter_bytes: int = DEFAULT_ADAPTER_BYTES
    adapters: Adapters = field(init=False, repr=False)
    _entries: OrderedDict[ComponentKey, _Entry] = field(default_factory=OrderedDict, init=False, repr=False)
    _bases: OrderedDict[BaseKey, _Base] = field(default_factory=OrderedDict, init=False, repr=False)
    _recalled: OrderedDict[Any, Files] = field(default_factory=OrderedDict, init=False, repr=False)
    _building: dict[BaseKey, _Turn] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pipelines", "max_adapter_bytes"):
            bound = getattr(self, name)
            if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int) or bound < 0):
                raise InvalidRequest(f"{name} is a number from 0 up or None, not {bound!r}")
        self.adapters = Adapters(self.max_adapter_bytes)

    def get(self, key: ComponentKey) -> torch.nn.Module | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry.module

    def parts(self, base: BaseKey) -> dict[str, torch.nn.Module] | None:
        """All the components of a foundation; None when it is not in memory."""
        with self._lock:
            found = self._bases.get(base)
            if found is None:
                return None
            self._bases.move_to_end(base)
            return {name: self._entries[key].module for name, key in found.keys.items()}

    def keep(
        self,
        base: BaseKey,
        keys: Mapping[str, ComponentKey],
        modules: Mapping[str, torch.nn.Module],
        leases: tuple[Lease, ...],
    ) -> None:
        """Keeps a foundation's clean components, together with the leases on the files they map."""
        with self._lock:
            for name, key in keys.items():
                if key not in self._entries:
                    self._entries[key] = _Entry(modules[name], weight_bytes(modules[name]))
                self._entries.move_to_end(key)
            known = self._bases.setdefault(base, _Base({}, leases))
            known.keys = {**known.keys, **keys}  # a class of fewer components may have come first
            self._bases.move_to_end(base)
            self._shrink()

    # ---- what stays, what goes

    def pin(self, pipe: Any) -> None:
        """The weights that this pipeline was made from are not dropped until `unpin`. Raises NotFound when they are gone."""
        self._pinned(pipe, pinned=True)

    def unpin(self, pipe: Any) -> None:
        self._pinned(pipe, pinned=False)

    def _pinned(self, pipe: Any, *, pinned: bool) -> None:
        with self._lock:
            found = self._bases.get(explanation.base_of(pipe))
            if found is None:
                raise NotFound("the weights of this pipeline are not in this cache", hint="Load it with cache=…, then pin.")
            found.pinned = pinned
            self._shrink()

    def relieve(self, keep: BaseKey | None = None) -> bool:
        """Memory is short: drops what was used longest ago and is neither pinned nor `keep`. False when nothing could go."""
        with self._lock:
            self.adapters.clear()
            return self._drop_oldest(keep)

    def clear(self) -> None:
        """Drops everything, pinned or not."""
        with self._lock:
            self._entries.clear()
            self._bases.clear()
            self._recalled.clear()
            self.adapters.clear()

    def _shrink(self) -> None:
        while self.max_pipelines is not None and len(self._bases) > self.max_pipelines and self._drop_oldest():
            pass
        while self.max_bytes is not None and self.bytes_held > self.max_bytes and self._drop_oldest():
            pass

    def _drop_oldest(self, keep: BaseKey | None = None) -> bool:
        oldest = next((key for key, base in self._bases.items() if not base.pinned and key != keep), None)
        if oldest is None:
            return False
        del self._bases[oldest]
        used = {key for base in self._bases.values() for key in base.keys.values()}
        for key in [key for key in self._entries if key not in used]:
            del self._entries[key]
        return True

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
        return files if all(map(os.path.exists, files.paths())) else None

    @contextmanager
    def building(self, base: BaseKey) -> Iterator[None]:
        """One at a time per foundation: who comes later finds the result."""
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

    @property
    def bytes_held(self) -> int:
        with self._lock:
            return sum(entry.size for entry in self._entries.values())

    def __contains__(self, base: BaseKey) -> bool:
        with self._lock:
            return base in self._bases

    def __len__(self) -> int:
        """The number of base pipelines."""
        with self._lock:
            return len(self._bases)

    def __bool__(self) -> bool:
        return True  # an empty cache is still one


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
