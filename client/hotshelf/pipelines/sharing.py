"""Structural copies: a module of its own whose weights are another's.

Every submodule, hook and attribute of the copy is its own; its parameters are new objects over the same storage, so that
`.to()`, a LoRA or a compile on the copy changes nothing of the original, and costs no memory. What writes into weights in
place owns the tensors it touches first: peft's merging (`fuse_lora`, `unfuse_lora`) and `load_state_dict` do so by
themselves; code that writes by hand, a training loop, say, calls `own_weights` before.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

M = TypeVar("M", bound="torch.nn.Module")
T = TypeVar("T", bound="torch.Tensor")
_SHARED = "_hotshelf_shared"
#: A class that defines one of these says by itself how it is copied.
_OWN_WAYS = frozenset({"__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__slots__"})
_ATOMS = frozenset({bool, int, float, str, bytes, type})
_CONTAINERS = frozenset({dict, OrderedDict, set, list})
#: A module's own dictionaries, which nobody else holds.
_OF_MODULES = frozenset({"_parameters", "_buffers", "_modules"})


def share(module: M) -> M:
    """A structural copy of `module`; from now on both own a weight before they write into it."""
    import torch

    _guard_merging()
    _guard_loading(module)
    memo: dict[int, Any] = {}
    parts = list(module.modules())
    for part in parts:
        for parameter in part._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                memo[id(parameter)] = _marked(torch.nn.Parameter(parameter.detach(), parameter.requires_grad), parameter)
        for buffer in part._buffers.values():
            if buffer is not None and id(buffer) not in memo:
                memo[id(buffer)] = _marked(buffer.detach(), buffer)
    _copy_structure(parts, memo)
    return copy.deepcopy(module, memo)


def _copy_structure(parts: Iterable[torch.nn.Module], memo: dict[int, Any]) -> None:
    """What deepcopy would do for every module of ordinary make, in a fifth of its time; the rest is left to deepcopy."""
    ordinary = [(part, kind) for part in parts if _is_ordinary(kind := _class_of(part))]
    for part, kind in ordinary:
        memo[id(part)] = kind.__new__(kind)
    for part, _ in ordinary:
        twin = memo[id(part)].__dict__
        for name, value in part.__dict__.items():
            if name in _OF_MODULES:
                twin[name] = {key: _copied(one, memo) for key, one in value.items()}
            else:
                twin[name] = _copied(value, memo)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """As deepcopy does it, with the many small things that modules hold at hand."""
    kind = type(value)
    if value is None or kind in _ATOMS:
        return value
    if kind in _CONTAINERS and not value:
        return kind()
    if kind is tuple and all(type(one) in _ATOMS for one in value):
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if getattr(value, "grad_fn", None) is not None:
        return value.detach().clone()  # computed from parameters (a normed weight), and anew before every use
    return copy.deepcopy(value, memo)


def _class_of(part: object) -> Any:
    return type(part)


@functools.cache
def _is_ordinary(kind: Any) -> bool:
    """Whether deepcopy would copy the attributes of its instances, and nothing else."""
    import torch

    # What convolutions do in __setstate__ is for pickles of years ago.
    plain = (torch.nn.Module, torch.nn.modules.conv._ConvNd, object)
    return not any(_OWN_WAYS & vars(one).keys() for one in kind.__mro__ if one not in plain)


def _marked(twin: T, tensor: torch.Tensor) -> T:
    """Both marked as shared; the marks that libraries keep on tensors (transformers: already initialised) come along."""
    setattr(tensor, _SHARED, True)
    vars(twin).update(vars(tensor))
    return twin


def mark_shared(tensors: Iterable[torch.Tensor]) -> None:
    """Somebody else holds these tensors too: whoever writes into them owns them first."""
    for tensor in tensors:
        setattr(tensor, _SHARED, True)


def own_weights(module: torch.nn.Module) -> None:
    """From now on the module's weights are only its own: called before anything writes into them."""
    _own((*module.parameters(), *module.buffers()))


def _own(tensors: Iterable[torch.Tensor]) -> None:
    for tensor in tensors:
        if getattr(tensor, _SHARED, False):
            tensor.data = tensor.data.clone()
            setattr(tensor, _SHARED, False)


def _guard_loading(module: torch.nn.Module) -> None:
    """`load_state_dict` copies into the weights that there are: it must own those that it is given."""
    if not any(getattr(hook, "hook", None) is _own_what_is_given for hook in module._load_state_dict_pre_hooks.values()):
        module.register_load_state_dict_pre_hook(_own_what_is_given)


def _own_what_is_given(module: torch.nn.Module, state: Mapping[str, Any], prefix: str, *_: object) -> None:
    named = (*module.named_parameters(), *module.named_buffers())
    _own(tensor for name, tensor in named if f"{prefix}{name}" in state)


@functools.cache
def _guard_merging() -> None:
    """peft merges adapters into a layer's weights, and takes them out again, in place: it must own that layer's first."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return  # without peft nothing merges
    layers = [BaseTunerLayer]
    for layer in layers:
        layers += layer.__subclasses__()
        for verb in ("merge", "unmerge"):
            if verb in vars(layer):
                setattr(layer, verb, _owning(vars(layer)[verb]))


def _owning(verb: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(verb)
    def call(layer: Any, *args: Any, **options: Any) -> Any:
        base = layer.get_base_layer()
        _own((*base.parameters(), *base.buffers()))
        return verb(layer, *args, **options)

    return call


def is_shareable(module: torch.nn.Module) -> bool:
    """Whether its weights are plain tensors. What quantizers put in their place is known to nobody but them."""
    import torch

    plain = (torch.Tensor, torch.nn.Parameter)
    return all(type(tensor) in plain for tensor in (*module.parameters(), *module.buffers()))


def duplicate(module: M) -> M:
    """A module that changes on neither side reach: sharing the weights where that can be, with weights of its own where not."""
    return share(module) if is_shareable(module) else copy.deepcopy(module)


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of its parameters and buffers, each storage once."""
    tensors = (*module.parameters(), *module.buffers())
    if not is_shareable(module):
        return sum(tensor.nbytes for tensor in tensors)
    seen = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    own = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    # A memory-mapped file is one storage behind many tensors: then what the tensors cover is what counts.
    return min(sum(seen.values()), sum(own.values())) if seen else 0
