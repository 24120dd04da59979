"""Which tensors of a pipeline's modules can be carried as bytes, and how copies take their places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from hotshelf.pipelines.sharing import is_shareable

if TYPE_CHECKING:
    import torch


def modules_of(pipe: object) -> list[torch.nn.Module]:
    """The components of a pipeline that have weights, each once."""
    import torch

    components = getattr(pipe, "components", {}).values()
    return list({id(part): part for part in components if isinstance(part, torch.nn.Module)}.values())


def host_bytes(modules: Iterable[torch.nn.Module]) -> int:
    """Bytes of all their weights in main memory; what sparse ones stand for."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(modules) if tensor.device.type == "cpu")


def portable(modules: Iterable[torch.nn.Module]) -> list[torch.Tensor]:
    """The tensors in main memory that are nothing but their bytes, each object once, in the order in which they lie there.

    What quantizers and dispatchers have made of a module is moved by themselves only.
    """
    found = [tensor for tensor in _tensors(part for part in modules if _is_plain(part)) if _is_bytes(tensor)]
    return sorted(found, key=lambda tensor: int(tensor.data_ptr()))


def assign(modules: Iterable[torch.nn.Module], copies: Mapping[int, torch.Tensor]) -> None:
    """Copies, by the `id` of what they are of, in its place: as `Module.to` does it, so that a parameter stays its object."""

    def copy_of(tensor: torch.Tensor) -> torch.Tensor:
        return copies.get(id(tensor), tensor)

    for part in modules:
        if any(id(tensor) in copies for tensor in _tensors([part])):
            part._apply(copy_of)


def _tensors(modules: Iterable[torch.nn.Module]) -> list[torch.Tensor]:
    found = (tensor for part in modules for tensor in (*part.parameters(), *part.buffers()))
    return list({id(tensor): tensor for tensor in found}.values())


def _is_plain(module: torch.nn.Module) -> bool:
    return is_shareable(module) and not any(hasattr(part, "_hf_hook") for part in module.modules())


def _is_bytes(tensor: torch.Tensor) -> bool:
    import torch

    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
        return False
    if not tensor.is_leaf or tensor.grad is not None or tensor.is_conj() or tensor.is_neg():
        return False
    # A new tensor is dense, and has the strides of the one that it is like as far as that is dense itself.
    return bool(torch.empty_like(tensor, device="meta").stride() == tensor.stride())
