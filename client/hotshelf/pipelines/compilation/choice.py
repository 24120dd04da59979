"""What of a pipeline is compiled, and how: what was asked for where that can be, else what comes nearest, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hotshelf.pipelines.order import PipelineOrder
from hotshelf.pipelines.sharing import is_shareable

if TYPE_CHECKING:
    import torch

#: The components that run once a step; the others, once an image, are not worth a compiler's minutes.
_DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder")


@dataclass(frozen=True, slots=True)
class Looks:
    """Of a denoiser: what bears on how it can be compiled."""

    class_name: str
    has_repeated_blocks: bool
    has_adapters: bool
    is_plain: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """`runs` is regional, full, aot or eager; `why` says why that is not what was asked for."""

    runs: str
    why: str | None = None


def denoisers(pipe: Any) -> dict[str, torch.nn.Module]:
    from diffusers import ModelMixin

    parts = ((name, pipe.components.get(name)) for name in _DENOISERS)
    return {name: part for name, part in parts if isinstance(part, ModelMixin)}


def look(module: torch.nn.Module) -> Looks:
    repeated = set(getattr(module, "_repeated_blocks", None) or ())
    return Looks(
        class_name=type(module).__name__,
        has_repeated_blocks=any(type(part).__name__ in repeated for part in module.modules()),
        has_adapters=any(hasattr(part, "lora_A") for part in module.modules()),
        is_plain=is_shareable(module),
    )


def choose(order: PipelineOrder, found: Mapping[str, Looks]) -> Choice:
    wanted = order.compile or "eager"
    if not found:
        return Choice("eager", "there is no denoiser in it that can be compiled")
    if wanted == "aot":
        why = _why_not_ahead(order, found)
        return Choice("aot") if why is None else Choice("eager", why)
    if wanted == "regional" and (without := [one.class_name for one in found.values() if not one.has_repeated_blocks]):
        return Choice("full", f"{without[0]} names no repeated blocks, so all of it is compiled")
    return Choice(wanted)


def _why_not_ahead(order: PipelineOrder, found: Mapping[str, Looks]) -> str | None:
    for name, looks in found.items():
        if looks.has_adapters:
            return f"adapters lie on the {name}: lora_mode='fuse' merges them, compile='regional' takes them as they are"
        if not looks.is_plain:
            return f"the weights of the {name} are quantized: compile='regional' takes them"
    if order.offload is not None or order.device_map is not None:
        return "its weights move while it draws (offload, device_map)"
    return None


def no_room(device: torch.device, weight_bytes: int) -> str | None:
    """Whoever makes a package has weights of the same size beside ours, and room to run them."""
    import torch

    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    if free >= 2 * weight_bytes + (2 << 30):
        return None
    return f"there is too little free memory on {device} to make a package beside what runs: `hotshelf build` makes it ahead"
