"""A pipeline from files: clean base components from memory where they are, from disk where not; then what is its own.

Building is done one at a time in a process: diffusers, transformers and accelerate patch torch globally while they
construct modules. Drawing needs no lock.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hotshelf.pipelines import attention as kernels
from hotshelf.pipelines import loras as adapters
from hotshelf.pipelines.files import BaseFiles, Files
from hotshelf.pipelines.memory import ComponentKey, PipelineCache
from hotshelf.pipelines.order import PipelineOrder
from hotshelf.pipelines.sharing import own_weights, share
from hotshelf_shared.errors import HotshelfError, InvalidRequest, UnsafeContent

if TYPE_CHECKING:
    import torch

_constructing = threading.RLock()


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
    import torch

    phases: dict[str, float] = {}
    order = replace(order, device=resolve_device(order.device))
    keys = _component_keys(order, files.base)
    began = time.monotonic()
    if cache is None:
        pipe = _load_base(order, files.base, {})
        _place(pipe, order.device)
        served_from = "built"
    else:
        base_key = (files.base.revision, order.dtype, order.device, order.variant)
        with cache.building(base_key):
            kept = {name: module for name, key in keys.items() if (module := cache.get(key)) is not None}
            if len(kept) < len(keys):
                clean = _load_base(order, files.base, kept)
                _place(clean, order.device)
                kept = {name: module for name, module in adapters.modules_of(clean).items() if name in keys}
                cache.keep(base_key, {keys[name]: module for name, module in kept.items()}, tuple(files.leases))
                served_from = "built"
            else:
                served_from = "memory"
        pipe = _load_base(order, files.base, {name: share(module) for name, module in kept.items()})
        _guard_fusing(pipe)
    phases["load"] = time.monotonic() - began
    began = time.monotonic()
    with _constructing:
        adapters.apply(pipe, files.loras)
    phases["lora"] = time.monotonic() - began
    began = time.monotonic()
    device, dtype = str(pipe.device), str(pipe.dtype).removeprefix("torch.")
    chosen = kernels.choose(order.attention, device, dtype)
    kernels.apply(chosen, adapters.modules_of(pipe))
    phases["attention"] = time.monotonic() - began
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return Built(pipe, chosen, served_from, device, dtype, phases)


def resolve_device(device: str | None) -> str | None:
    """The device meant by `auto`; any other as it is. Raises InvalidRequest when this machine has no such device."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device is None or device == "cpu":
        return device
    kind, _, index = device.partition(":")
    count = {"cuda": torch.cuda.device_count, "mps": lambda: int(torch.backends.mps.is_available())}.get(kind, lambda: 0)()
    if int(index or 0) >= count:
        raise InvalidRequest(f"there is no device {device} here ({count} of its kind)", hint="Use device='auto'.")
    return device


def _component_keys(order: PipelineOrder, base: BaseFiles) -> dict[str, ComponentKey]:
    """A key for every component that has weights of its own."""
    keys = {}
    for name, value in base.index().items():
        if not isinstance(value, list) or len(value) != 2 or value[0] is None:
            continue
        if any(path.startswith(f"{name}/") and path.endswith((".safetensors", ".sft")) for path in base.files):
            keys[name] = ComponentKey(base.component(name), ".".join(map(str, value)), order.dtype, order.device, order.variant)
    return keys


def _load_base(order: PipelineOrder, base: BaseFiles, parts: dict[str, torch.nn.Module]) -> Any:
    """diffusers' own from_pretrained, given the components that are there already."""
    import diffusers
    import torch

    index = base.index()
    if not hasattr(diffusers, index["_class_name"]):
        raise InvalidRequest(
            f"diffusers {diffusers.__version__} knows no pipeline class {index['_class_name']!r}",
            hint="Install a newer diffusers in the worker, or correct model_index.json.",
        )
    _refuse_code(index)
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, **parts}
    if order.dtype is not None:
        options["torch_dtype"] = getattr(torch, order.dtype)
    if order.variant is not None:
        options["variant"] = order.variant
    try:
        with _constructing:
            return diffusers.DiffusionPipeline.from_pretrained(str(base.path), **options)
    except HotshelfError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise InvalidRequest(
            f"{base.path} cannot be built into a {index['_class_name']}: {reason}",
            hint="Does plain diffusers load it? `hotshelf verify` checks the bytes; see the cause for the rest.",
        ) from error


def _refuse_code(index: dict[str, Any]) -> None:
    """The daemon refuses these at the door; a local folder comes through no door."""
    for component, value in index.items():
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and "." in value[0]:
            raise UnsafeContent(f"model_index.json: {component} comes from {value[0]!r}", hint="Load it with plain diffusers.")


def _place(pipe: Any, device: str | None) -> None:
    if device is None:
        return
    try:
        pipe.to(device)
    except RuntimeError as error:
        raise HotshelfError(
            f"the pipeline does not fit on {device}: {(str(error).splitlines() or ['no message'])[0][:300]}",
            hint="Free memory there, or load it in float16.",
        ) from error


def _guard_fusing(pipe: Any) -> None:
    """`fuse_lora` and `unfuse_lora` write into weights in place: on a shared base they must own them first."""
    for verb in ("fuse_lora", "unfuse_lora"):
        original = getattr(pipe, verb, None)
        if original is not None:
            pipe.__dict__[verb] = _owning(pipe, original)


def _owning(pipe: Any, original: Any) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        if not pipe.__dict__.get("_hotshelf_owns_weights"):
            for module in adapters.modules_of(pipe).values():
                own_weights(module)
            pipe.__dict__["_hotshelf_owns_weights"] = True
        return original(*args, **options)

    return call
