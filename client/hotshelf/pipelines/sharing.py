"""Structural copies: a module of its own whose weights are another's.

Every submodule, hook and attribute of the copy is its own; its parameters are new objects over the same storage, so that
`.to()`, a LoRA or a compile on the copy changes nothing of the original, and costs no memory. What writes into weights in
place (`fuse_lora`) must call `own_weights` first.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

M = TypeVar("M", bound="torch.nn.Module")


def share(module: M) -> M:
    """A structural copy of `module`. Buffers are shared like parameters: no inference writes into either."""
    import torch

    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = torch.nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach()
    return copy.deepcopy(module, memo)


def own_weights(module: torch.nn.Module) -> None:
    """From now on the module's weights are only its own: called before anything writes into them."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    for buffer in module.buffers():
        buffer.data = buffer.data.clone()


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of its parameters and buffers, each storage once."""
    seen = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*module.parameters(), *module.buffers())}
    own = {t.data_ptr(): t.nbytes for t in (*module.parameters(), *module.buffers())}
    # A memory-mapped file is one storage behind many tensors: then what the tensors cover is what counts.
    return min(sum(seen.values()), sum(own.values())) if seen else 0
