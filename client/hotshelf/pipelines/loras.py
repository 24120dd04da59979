"""LoRAs onto a pipeline whose modules are its own: each file as one adapter, in order, with its scale.

A LoRA that does not fit is refused as a whole. The base cannot suffer: it is another object.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

from hotshelf.pipelines.files import LoraFile
from hotshelf_shared.errors import InvalidRequest

if TYPE_CHECKING:
    import torch

#: A tensor's layer, in every layout that diffusers' own reader hands back.
_TARGET = re.compile(
    r"(?P<module>.+?)\.(processor\.)?"
    r"(lora_[AB]|lora\.(down|up)|lora_linear_layer\.(down|up)|[a-z_]*lora\.(down|up)|lora_(down|up)|alpha)\b"
)


def apply(pipe: Any, loras: list[LoraFile]) -> None:
    """Loads every LoRA and sets the scales. Raises InvalidRequest naming the first one that does not fit, and where."""
    if not loras:
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise InvalidRequest(f"{type(pipe).__name__} takes no LoRAs", hint="Load it without `loras`.")
    names = [f"lora_{position}" for position in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        _load(pipe, name, lora)
    pipe.set_adapters(names, [lora.order.scale for lora in loras])


def _load(pipe: Any, name: str, lora: LoraFile) -> None:
    before = _adapted(pipe, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what diffusers warns of here is checked below, and is an error
            pipe.load_lora_weights(
                str(lora.path.parent),
                weight_name=lora.path.name,
                adapter_name=name,
                local_files_only=True,
                use_safetensors=True,
            )
    except Exception as error:
        raise _misfit(pipe, lora, _first_line(error)) from error
    found = _adapted(pipe, name) - before
    expected = _expected(pipe, lora)
    if not found or len(found) < expected:
        raise _misfit(pipe, lora, f"only {len(found)} of its {expected} layers have a place in this pipeline")


def _adapted(pipe: Any, name: str) -> set[str]:
    """The layers that carry the adapter `name`, as component.module."""
    layers = set()
    for component, module in modules_of(pipe).items():
        for path, layer in module.named_modules():
            adapters = getattr(layer, "lora_A", None)
            if adapters is not None and name in adapters:
                layers.add(f"{component}.{path}")
    return layers


def _expected(pipe: Any, lora: LoraFile) -> int:
    """How many layers the file is for, as diffusers reads it (kohya's names included)."""
    state = pipe.lora_state_dict(**_file(lora))
    tensors = state[0] if isinstance(state, tuple) else state
    return len({found["module"] for key in tensors if (found := _TARGET.match(key))})


def _file(lora: LoraFile) -> dict[str, Any]:
    """How diffusers is told to read exactly this file."""
    return {
        "pretrained_model_name_or_path_or_dict": str(lora.path.parent),
        "weight_name": lora.path.name,
        "local_files_only": True,
        "use_safetensors": True,
    }


def modules_of(pipe: Any) -> dict[str, torch.nn.Module]:
    import torch

    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def _misfit(pipe: Any, lora: LoraFile, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"the LoRA {lora.order.path} does not fit {type(pipe).__name__}: {why}",
        hint="It was trained for another base, or is no LoRA: choose one made for this model.",
        lora=lora.order.path,
        digest=lora.digest,
    )


def _first_line(error: BaseException) -> str:
    """torch lists every tensor that does not fit, one a line, under a heading: the first of them says it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = next((line for line in lines if "size mismatch" in line or "Unexpected key" in line), None)
    return (named or (lines[0] if lines else type(error).__name__))[:300]
