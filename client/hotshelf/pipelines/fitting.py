"""Which layers a LoRA is for, which of them a pipeline has, and why one does not fit: said by the first that does not."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hotshelf.pipelines.files import LoraFile
from hotshelf.pipelines.loading import first_line
from hotshelf_shared.errors import InvalidRequest

if TYPE_CHECKING:
    import torch

#: A tensor's layer, in every layout that diffusers' own reader hands back.
_TARGET = re.compile(
    r"(?P<module>.+?)\.(?:(?:lora_[AB]|lora\.(?:down|up)|lora_linear_layer\.(?:down|up)|lora_(?:down|up))\b"
    r"|(?P<projection>[a-z_]+?)_lora\.(?:down|up)\b)"
)
#: One layer's names in old and new layouts, made one.
_SAME = (
    (re.compile(r"\.processor\b|\.text_model\b"), ""),
    (re.compile(r"\.to_out(\.0)?$"), ".out"),
    (re.compile(r"\.out_proj$"), ".out"),
    (re.compile(r"\.([qkv])_proj$"), r".to_\1"),
)


def modules_of(pipe: Any) -> dict[str, torch.nn.Module]:
    import torch

    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def layers(tensors: Collection[str]) -> list[str]:
    found: dict[str, None] = {}
    for key in tensors:
        if match := _TARGET.match(key):
            found[".".join(filter(None, (match["module"], match["projection"])))] = None
    return list(found)


def adapted(pipe: Any, name: str) -> set[str]:
    """The layers that carry the adapter `name`, as component.module."""
    layers = set()
    for component, module in modules_of(pipe).items():
        for path, layer in module.named_modules():
            for kind in ("lora_A", "lora_embedding_A"):
                if name in getattr(layer, kind, ()):
                    layers.add(f"{component}.{path}")
    return layers


def canonical(layer: str) -> str:
    for old, new in _SAME:
        layer = old.sub(new, layer)
    return layer


def why_not_all(wanted: Collection[str], found: Collection[str]) -> str:
    """Some of a file's layers have no place: how many, and the first of them."""
    there = {canonical(layer) for layer in found}
    first = next((layer for layer in wanted if canonical(layer) not in there), None)
    where = f"; the first without is {first}" if first else ""
    return f"only {len(found)} of its {len(wanted)} layers have a place in this pipeline{where}"


def why(error: BaseException, lora: LoraFile) -> str:
    """torch lists every tensor that does not fit, one a line, under a heading: the first of them says it."""
    lines = [line.strip() for line in str(error).splitlines()]
    named = next((line for line in lines if "size mismatch" in line or "Unexpected key" in line), None)
    if named is not None:
        return named[:300]
    try:
        from safetensors import safe_open

        with safe_open(lora.path, "pt") as tensors:
            first = min(tensors.keys(), default="none")
    except Exception as unreadable:  # whatever is wrong with the file, it is the reason
        return f"{lora.path.name} is no safetensors file: {first_line(unreadable)}"
    return f"{first_line(error)} (its first tensor is {first})"


def misfit(pipe: Any, lora: LoraFile, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"the LoRA {lora.order.path} does not fit {type(pipe).__name__}: {why}",
        hint="It was trained for another base, or is no LoRA: choose one made for this model.",
        lora=lora.order.path,
        digest=lora.digest,
    )


def check_shapes(pipe: Any, state: Mapping[str, torch.Tensor]) -> None:
    """A swap takes tensors of any shape. Raises ValueError naming the first that is not made for its layer."""
    import torch

    sizes = {
        canonical(f"{component}.{path.replace('.base_layer', '')}"): (layer.in_features, layer.out_features)
        for component, module in modules_of(pipe).items()
        for path, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    for key, tensor in state.items():
        if (match := _TARGET.match(key)) is None or tensor.ndim != 2:
            continue
        layer = canonical(".".join(filter(None, (match["module"], match["projection"]))))
        is_down = re.search(r"lora_A|[._]down\b", key) is not None
        if layer in sizes and tensor.shape[is_down] != sizes[layer][not is_down]:
            raise ValueError(f"size mismatch for {key}: {tuple(tensor.shape)}, and its layer is {sizes[layer]}")


def parameters(pipe: Any, name: str) -> Iterator[torch.nn.Parameter]:
    """The weights of the adapter `name`."""
    for module in modules_of(pipe).values():
        for path, parameter in module.named_parameters():
            if f".{name}." in path:
                yield parameter
