"""A pipeline from files: clean components from memory where they are, from disk where not; then what is its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hotshelf.pipelines import attention as kernels
from hotshelf.pipelines import loading, needs, overrides
from hotshelf.pipelines import loras as adapters
from hotshelf.pipelines.files import Files
from hotshelf.pipelines.fitting import modules_of
from hotshelf.pipelines.lastmile import place
from hotshelf.pipelines.loading import constructing
from hotshelf.pipelines.memory import BaseKey, ComponentKey, PipelineCache
from hotshelf.pipelines.offloading import offload
from hotshelf.pipelines.order import PipelineOrder
from hotshelf.pipelines.quiet import quietly
from hotshelf.pipelines.reading import Reading
from hotshelf.pipelines.sharing import duplicate, is_shareable, share
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import HotshelfError

if TYPE_CHECKING:
    import torch

log = logging.getLogger("hotshelf")
Modules = dict[str, "torch.nn.Module"]


@dataclass(slots=True)
class Foundation:
    """A clean pipeline of its own, where its weights came from, and which components fusing changed."""

    pipe: Any
    served_from: str
    fused: frozenset[str] = frozenset()


@dataclass(slots=True)
class Built:
    """A pipeline and how it came about; `phases` in seconds. `clean` is the foundation once more, when it was built now."""

    pipe: Any
    attention: kernels.Attention
    served_from: str
    device: str
    dtype: str
    base: BaseKey
    reading: Reading
    clean: Foundation | None = None
    phases: dict[str, float] = field(default_factory=dict)


def build(order: PipelineOrder, files: Files, cache: PipelineCache | None, *, keep_clean: bool = False) -> Built:
    """The pipeline that `order` asks for, its own object. Raises HotshelfError; then nothing has changed.

    `keep_clean` asks for a second object over the same weights, to be saved while the first is used.
    """
    base = BaseKey.of(order, files)
    while True:
        try:
            return _build(order, files, cache, base, keep_clean=keep_clean)
        except loading.UnusableSnapshot as error:
            if files.is_prebuilt:
                raise  # what it was built from is not here
            log.warning("the pipeline is built anew: %s", error)
            files = replace(files, snapshot=None)
        except Exception as error:
            if not loading.is_out_of_memory(error):
                raise
            if cache is None or not cache.relieve(keep=base):
                raise HotshelfError(
                    f"there is not enough memory on {order.base_device} for {order.source}",
                    hint="Free memory there, load it in float16, or give offload='model'.",
                ) from error
        _return_freed_memory()


def _build(order: PipelineOrder, files: Files, cache: PipelineCache | None, base: BaseKey, *, keep_clean: bool) -> Built:
    phases: dict[str, float] = {}
    reading = Reading()
    with _timed(phases, "load"):
        found = (_fused if order.fuses else _foundation)(order, files, cache, reading)
        with constructing, quietly():
            clean = _again(found) if keep_clean and found.served_from == "built" else None
    pipe = found.pipe
    with _timed(phases, "lora"), constructing, quietly():
        if not order.fuses:
            shelf = cache.adapters if cache is not None else None
            adapters.apply(pipe, files.loras, shelf, hotswap=order.lora_mode == "hotswap")
    with _timed(phases, "attention"), constructing, quietly():
        device, dtype = str(pipe.device), str(pipe.dtype).removeprefix("torch.")
        chosen = kernels.choose(order.attention, device, dtype)
        kernels.apply(chosen, modules_of(pipe))
    offload(pipe, order.offload)
    return Built(pipe, chosen, found.served_from, device, dtype, base, reading, clean, phases)


def _foundation(order: PipelineOrder, files: Files, cache: PipelineCache | None, reading: Reading) -> Foundation:
    """A clean pipeline whose modules are its own."""
    if cache is None or order.device_map is not None:
        with constructing, quietly():
            pipe = _loaded(order, files, {}, frozenset(_component_keys(order, files)), reading)
            return Foundation(pipe, "built" if files.snapshot is None else "snapshot")
    keys, base = _component_keys(order, files), BaseKey.of(order, files)
    with cache.building(base), constructing, quietly():
        kept = {name: part for name, key in keys.items() if (part := _in_memory(cache, name, key, base)) is not None}
        pipe = _loaded(order, files, {name: share(module) for name, module in kept.items()}, frozenset(keys), reading)
        parts = {name: part for name, part in modules_of(pipe).items() if name in keys}
        new = {name: part for name, part in parts.items() if type(part) is not type(kept.get(name))}
        fresh = {name: share(part) for name, part in new.items() if is_shareable(part)}
        there = {name: kept[name] for name in parts if name not in new} | fresh
        cache.keep(base, _own_keys(keys, there, files, base), there, files.base_leases)
        return Foundation(pipe, "memory" if not new else "built" if files.snapshot is None else "snapshot")


def _in_memory(cache: PipelineCache, name: str, key: ComponentKey, base: BaseKey) -> Any | None:
    converted = cache.get(_private_key(key, name, base))
    return cache.get(key) if converted is None else converted


def _own_keys(keys: Mapping[str, ComponentKey], parts: Modules, files: Files, base: BaseKey) -> dict[str, ComponentKey]:
    """Some pipelines make another module of one that they are given: AnimateDiff puts its motion adapter into the UNet.

    What came of that is kept for the same pipeline, and never served as the component that it was made of.
    """
    return {
        name: _private_key(keys[name], name, base) if overrides.is_converted(files, name, part) else keys[name]
        for name, part in parts.items()
    }


def _fused(order: PipelineOrder, files: Files, cache: PipelineCache | None, reading: Reading) -> Foundation:
    """A foundation with LoRAs merged into it. Only what they touch is new; the rest is the clean base's."""
    if cache is None or order.device_map is not None:
        if files.snapshot is not None:
            with constructing, quietly():
                return Foundation(_loaded(order, files, {}, frozenset(), reading), "snapshot")
        return _fuse(order, files, cache, reading)
    base, keys = BaseKey.of(order, files), _component_keys(order, files)
    with cache.building(base):
        kept = cache.parts(base)
        if kept is None and files.snapshot is None:
            found = _fuse(order, files, cache, reading)
        else:
            same = {} if kept is not None else {n: cache.get(keys[n]) for n in _unchanged(files, keys)}
            own = {name: share(part) for name, part in (kept or same).items() if part is not None}
            with constructing, quietly():
                pipe = _loaded(order, files, own, frozenset(kept or keys), reading)
            found = Foundation(pipe, "memory" if kept is not None else "snapshot", frozenset(keys) - _unchanged(files, keys))
        if kept is None:
            with constructing:
                modules = {name: share(part) for name, part in _shareable(found.pipe).items() if name in keys}
            mine = _own_keys(keys, modules, files, base)
            fused = {name: _private_key(keys[name], name, base) for name in modules if name in found.fused}
            cache.keep(base, mine | fused, modules, files.base_leases)
        return found


def _unchanged(files: Files, keys: Mapping[str, object]) -> frozenset[str]:
    """The components that the pipeline snapshot has just as the base has them."""
    if files.snapshot is None or files.base.single is not None:
        return frozenset()
    names = keys.keys() - files.override_names
    return frozenset(
        name for name in names if files.snapshot.component(name, files.index) == files.base.component(name, files.index)
    )


def _fuse(order: PipelineOrder, files: Files, cache: PipelineCache | None, reading: Reading) -> Foundation:
    plain = replace(order, lora_mode="adapters", loras=())
    clean = _foundation(plain, replace(files, loras=(), snapshot=None), cache, reading)
    with constructing, quietly():
        fused = adapters.fuse(clean.pipe, files.loras, cache.adapters if cache is not None else None)
    return Foundation(clean.pipe, "built", fused)


def _shareable(pipe: Any) -> Modules:
    return {name: part for name, part in modules_of(pipe).items() if is_shareable(part)}


def _private_key(key: ComponentKey, name: str, base: BaseKey) -> ComponentKey:
    return replace(key, digest=Digest.of(f"{base.foundation}/{name}".encode()))


def _again(found: Foundation) -> Foundation | None:
    """The same foundation as another object over the same weights; None where a quantizer's cannot be had twice."""
    try:
        parts = {name: duplicate(part) for name, part in modules_of(found.pipe).items()}
    except RuntimeError:
        return None
    return Foundation(type(found.pipe)(**{**found.pipe.components, **parts}), found.served_from, found.fused)


def _loaded(order: PipelineOrder, files: Files, parts: Mapping[str, Any], weights: frozenset[str], reading: Reading) -> Any:
    cls = loading.pipeline_class(files.index, order.pipeline_class)
    given = dict(parts)
    for one in files.components:
        if one.name not in given and files.snapshot is None:
            given[one.name] = overrides.load(one, order, files, cls, reading)
    mapped = not reading.tree(files, given)
    pipe = loading.load(order, files, given, cls=cls, weights=weights, mapped=mapped)
    reading.copied.update(place(pipe, order.device).to_json())
    return pipe


def _component_keys(order: PipelineOrder, files: Files) -> dict[str, ComponentKey]:
    """A key for every component that has weights of its own."""

    def key(digest: Digest, class_name: str) -> ComponentKey:
        return ComponentKey(digest, class_name, order.dtype, order.base_device, order.variant, order.quantization)

    def own(name: str) -> Digest:
        if files.base.single is None or files.config is None:
            return files.base.component(name, files.index)
        return Digest.of(f"{files.base.revision}/{files.config.revision}/{name}".encode())

    without = set() if files.base.single is not None else set(needs.lacking(files.index, files.base.files))
    if files.base.single is not None:
        without = {name for name, (_, cls) in needs.components(files.index).items() if needs.is_weightless(cls)}
    keys = {
        name: key(own(name), ".".join(value))
        for name, value in needs.components(files.index).items()
        if name not in without and name not in files.override_names
    }
    return keys | {
        one.name: key(one.revision, f"override {one.name}")
        for one in files.components
        if any(needs.is_weights(path) for path in one.files)
    }


def _return_freed_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _timed(phases: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    phases[name] = time.monotonic() - began
