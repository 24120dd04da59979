"""LoRAs onto a pipeline whose modules are its own: each file as one adapter, in order, with its scale.

A LoRA that does not fit is refused as a whole, naming what does not fit first. The base cannot suffer: it is another
object.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
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


def apply(pipe: Any, loras: Sequence[LoraFile]) -> None:
    """Loads every LoRA and sets the scales. Raises InvalidRequest naming the first one that does not fit, and where."""
    if not loras:
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise InvalidRequest(f"{type(pipe).__name__} takes no LoRAs", hint="Load it without `loras`.")
    names = [f"lora_{position}" for position in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        _load(pipe, name, lora)
    pipe.set_adapters(names, [lora.order.scale for lora in loras])


def modules_of(pipe: Any) -> dict[str, torch.nn.Module]:
    import torch

    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def _load(pipe: Any, name: str, lora: LoraFile) -> None:
    try:
        with _reading(pipe) as wanted:
            pipe.load_lora_weights(
                str(lora.path.parent),
                weight_name=lora.path.name,
                adapter_name=name,
                local_files_only=True,
                use_safetensors=True,
            )
    except Exception as error:
        raise _misfit(pipe, lora, _why(error, lora)) from error
    found = _adapted(pipe, name)
    if not found or len(found) < len(wanted):
        first = next((layer for layer in wanted if _canonical(layer) not in {_canonical(one) for one in found}), None)
        where = f"; the first without is {first}" if first else ""
        raise _misfit(pipe, lora, f"only {len(found)} of its {len(wanted)} layers have a place in this pipeline{where}")


@contextmanager
def _reading(pipe: Any) -> Iterator[list[str]]:
    """The layers that the file is for, as diffusers reads it: every layout in the names of its own, kohya's included."""
    read, wanted = pipe.lora_state_dict, list[str]()

    def noting(*args: Any, **options: Any) -> Any:
        answer = read(*args, **options)
        wanted.extend(_layers(answer[0] if isinstance(answer, tuple) else answer))
        return answer

    pipe.__dict__["lora_state_dict"] = noting
    try:
        yield wanted
    finally:
        del pipe.__dict__["lora_state_dict"]


def _layers(tensors: Collection[str]) -> list[str]:
    found: dict[str, None] = {}
    for key in tensors:
        if match := _TARGET.match(key):
            found[".".join(filter(None, (match["module"], match["projection"])))] = None
    return list(found)


def _adapted(pipe: Any, name: str) -> set[str]:
    """The layers that carry the adapter `name`, as component.module."""
    layers = set()
    for component, module in modules_of(pipe).items():
        for path, layer in module.named_modules():
            for kind in ("lora_A", "lora_embedding_A"):
                if name in getattr(layer, kind, ()):
                    layers.add(f"{component}.{path}")
    return layers


def _canonical(layer: str) -> str:
    for old, new in _SAME:
        layer = old.sub(new, layer)
    return layer


def _why(error: BaseException, lora: LoraFile) -> str:
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


def _misfit(pipe: Any, lora: LoraFile, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"the LoRA {lora.order.path} does not fit {type(pipe).__name__}: {why}",
        hint="It was trained for another base, or is no LoRA: choose one made for this model.",
        lora=lora.order.path,
        digest=lora.digest,
    )
