"""A pipeline from files: clean base components from memory where they are, from disk where not; then what is its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hotshelf.pipelines import attention as kernels
from hotshelf.pipelines import loras as adapters
from hotshelf.pipelines import needs
from hotshelf.pipelines.files import Files
from hotshelf.pipelines.loading import constructing, from_pretrained, place
from hotshelf.pipelines.memory import BaseKey, ComponentKey, PipelineCache
from hotshelf.pipelines.order import PipelineOrder
from hotshelf.pipelines.quiet import quietly
from hotshelf.pipelines.sharing import share

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class Built:
    """A pipeline and how it came about; `phases` in seconds."""

    pipe: Any
    attention: kernels.Attention
    served_from: str
    device: str
    dtype: str
    phases: dict[str, float] = field(default_factory=dict)


def build(order: PipelineOrder, files: Files, cache: PipelineCache | None) -> Built:
    """The pipeline that `order` asks for, its own object. Raises HotshelfError; then nothing has changed."""
    phases: dict[str, float] = {}
    with _timed(phases, "load"):
        pipe, served_from = _base(order, files, cache)
    with _timed(phases, "lora"), constructing, quietly():
        adapters.apply(pipe, files.loras)
    with _timed(phases, "attention"), constructing, quietly():
        device, dtype = str(pipe.device), str(pipe.dtype).removeprefix("torch.")
        chosen = kernels.choose(order.attention, device, dtype)
        kernels.apply(chosen, adapters.modules_of(pipe))
    return Built(pipe, chosen, served_from, device, dtype, phases)


def _base(order: PipelineOrder, files: Files, cache: PipelineCache | None) -> tuple[Any, str]:
    """A base pipeline whose modules are its own, and whether all of its weights were in memory."""
    if cache is None:
        with constructing, quietly():
            return _loaded(order, files, {}), "built"
    keys, base = _component_keys(order, files), BaseKey.of(order, files)
    with cache.building(base), constructing, quietly():
        kept = {name: module for name, key in keys.items() if (module := cache.get(key)) is not None}
        pipe = _loaded(order, files, {name: share(module) for name, module in kept.items()})
        fresh = {name: share(part) for name, part in adapters.modules_of(pipe).items() if name in keys and name not in kept}
        cache.keep(base, {keys[name]: module for name, module in (kept | fresh).items()}, files.base_leases)
        return pipe, "built" if fresh else "memory"


def _loaded(order: PipelineOrder, files: Files, parts: Mapping[str, torch.nn.Module]) -> Any:
    pipe = from_pretrained(files.base.path, files.index, parts, dtype=order.dtype, variant=order.variant)
    place(pipe, order.device)
    return pipe


def _component_keys(order: PipelineOrder, files: Files) -> dict[str, ComponentKey]:
    """A key for every component that has weights of its own."""
    without = needs.lacking(files.index, files.base.files)
    return {
        name: ComponentKey(files.base.component(name), ".".join(value), order.dtype, order.base_device, order.variant)
        for name, value in needs.components(files.index).items()
        if name not in without
    }


@contextmanager
def _timed(phases: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    phases[name] = time.monotonic() - began
