"""What of a module decides what it computes, besides its weights' values: and whether that is still as it was.

Two modules of one structure are one graph. A LoRA, FreeU, fused projections, another attention kernel, a hook: each shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_ATOMS = (type(None), bool, int, float, str)
#: What libraries note on a module for themselves, and no forward reads: that it once had adapters, say.
_NOTES = frozenset(
    {"_internal_dict", "_hf_peft_config_loaded", "peft_config", "_safe_fusing", "lora_scale", "_is_hf_initialized"}
)
#: A module's own bookkeeping, which is looked at by itself or says nothing.
_OWN = frozenset(
    {"_parameters", "_buffers", "_modules", "_compiled_call_impl", "_non_persistent_buffers_set", "_is_full_backward_hook"}
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def lines(module: torch.nn.Module) -> list[str]:
    """A line for every submodule and every tensor."""
    found = []
    for path, part in module.named_modules():
        said = {name: value for name, value in vars(part).items() if name not in _NOTES | _OWN and "_hook" not in name}
        plain = {name: _plain(value) for name, value in said.items()}
        hooks = sum(len(vars(part).get(name, ())) for name in _HOOKS)
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        found.append(f"{path} {kind} {json.dumps(plain, sort_keys=True)}{f' hooks: {hooks}' if hooks else ''}")
    for name, tensor in tensors_of(module).items():
        found.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.stride()} {tensor.device.type}")
    return found


def digest(found: list[str]) -> str:
    return sha256("\n".join(found).encode()).hexdigest()


def config_digest(module: torch.nn.Module) -> str:
    """Of its configuration, which some forwards read and no attribute shows; not of where it came from."""
    told = {str(name): value for name, value in dict(getattr(module, "config", {})).items() if not str(name).startswith("_")}
    return sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under each of its names."""
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return dict(named)


def _plain(value: Any, *, deep: bool = True) -> Any:
    if isinstance(value, _ATOMS):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one, deep=deep) for one in value]
    name = getattr(value, "__qualname__", None)
    if name is not None:  # a class or a function
        return f"{getattr(value, '__module__', '')}.{name}"
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if deep and hasattr(value, "__dict__"):
        return {"kind": kind, **{str(key): _plain(one, deep=False) for key, one in vars(value).items()}}
    return str(value) if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device") else kind


class Watch:
    """Whether a module has been changed since: asked at every step, so all of it is comparing dictionaries."""

    def __init__(self, module: torch.nn.Module) -> None:
        parts = list(module.modules())
        kept = [vars(part) for part in parts] + [part._modules for part in parts]
        self._dicts = [(live, dict(live)) for live in kept]
        self._hooks = [vars(part)[name] for part in parts for name in _HOOKS]

    def is_changed(self) -> bool:
        try:
            return any(self._hooks) or any(live != was and _said(live) != _said(was) for live, was in self._dicts)
        except Exception:  # tensors that differ cannot be compared
            return True


def _said(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in _NOTES}
