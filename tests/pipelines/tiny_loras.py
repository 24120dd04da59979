"""Tiny LoRAs, made for a pipeline: its layers are found in the modules, the weights are random and none is zero."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

RANK = 4
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


def layers(pipe: Any, component: str, *, suffixes: Iterable[str] = _ATTENTION) -> dict[str, tuple[int, int]]:
    """Path → (in, out) of the linear layers of a component that LoRAs are trained on."""
    import torch

    found = {}
    for path, module in getattr(pipe, component).named_modules():
        if isinstance(module, torch.nn.Linear) and path.endswith(tuple(suffixes)):
            found[path] = (module.in_features, module.out_features)
    return found


def _pair(generator: torch.Generator, size: tuple[int, int], rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    down = torch.randn(rank, size[0], generator=generator)
    return down, torch.randn(size[1], rank, generator=generator)


def lora(
    pipe: Any,
    layout: str,
    *,
    seed: int = 0,
    components: Iterable[str] = ("unet",),
    limit: int | None = None,
    rank: int = RANK,
    dtype: torch.dtype | None = None,
) -> bytes:
    """A LoRA file for `pipe` in a layout: ``diffusers`` (peft's names), ``diffusers-old``, ``kohya`` or ``attn-procs``."""
    import torch
    from safetensors.torch import save

    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for component in components:
        for path, size in list(layers(pipe, component).items())[:limit]:
            down, up = _pair(generator, size, rank)
            state |= _LAYOUTS[layout](component, path, down, up)
    return save({name: tensor.to(dtype) for name, tensor in state.items()})


def _text_path(component: str, path: str) -> str:
    """Published files call the text model's layers by the names of transformers 4."""
    return f"text_model.{path}" if component.startswith("text_encoder") and not path.startswith("text_model.") else path


def _peft(component: str, path: str, down: torch.Tensor, up: torch.Tensor) -> dict[str, torch.Tensor]:
    path = _text_path(component, path)
    return {f"{component}.{path}.lora_A.weight": down, f"{component}.{path}.lora_B.weight": up}


def _old(component: str, path: str, down: torch.Tensor, up: torch.Tensor) -> dict[str, torch.Tensor]:
    path = _text_path(component, path)
    middle = "lora_linear_layer" if component.startswith("text_encoder") else "lora"
    return {f"{component}.{path}.{middle}.down.weight": down, f"{component}.{path}.{middle}.up.weight": up}


def _attn_procs(component: str, path: str, down: torch.Tensor, up: torch.Tensor) -> dict[str, torch.Tensor]:
    parent, _, leaf = path.removesuffix(".0").rpartition(".")
    return {
        f"{component}.{parent}.processor.{leaf}_lora.down.weight": down,
        f"{component}.{parent}.processor.{leaf}_lora.up.weight": up,
    }


def _kohya(component: str, path: str, down: torch.Tensor, up: torch.Tensor) -> dict[str, torch.Tensor]:
    import torch

    prefix = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}[component]
    name = f"{prefix}_{_text_path(component, path).replace('.', '_')}"
    return {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(RANK / 2.0),
    }


def _kohya_xl(component: str, path: str, down: torch.Tensor, up: torch.Tensor) -> dict[str, torch.Tensor]:
    """As `_kohya`, for two text encoders: they are called te1 and te2."""
    state = _kohya(component, path, down, up)
    return {key.replace("lora_te_", "lora_te1_"): value for key, value in state.items()}


_LAYOUTS = {"diffusers": _peft, "diffusers-old": _old, "attn-procs": _attn_procs, "kohya": _kohya, "kohya-xl": _kohya_xl}
