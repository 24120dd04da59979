"""What an order and its files make: the recipe, whose key is the pipeline's name anywhere, and what of it is worth keeping.

The *foundation* is what is kept, in memory and as a pipeline snapshot: all of the recipe, without adapters, which are
loaded onto it. Fused LoRAs are part of it. Nothing here imports torch.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from hotshelf.pipelines import needs
from hotshelf.pipelines.files import Files
from hotshelf.pipelines.order import PipelineOrder
from hotshelf.pipelines.tensors import stored_dtypes
from hotshelf_shared.recipe import LoraRecipe, Recipe

#: safetensors' names of the dtypes that a cast concerns.
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def recipe(order: PipelineOrder, files: Files) -> Recipe:
    """All of it."""
    return Recipe(
        base=files.base.revision,
        loras=tuple(LoraRecipe(lora.digest, lora.order.weight) for lora in files.loras),
        lora_mode=order.lora_mode,
        dtype=order.dtype,
        variant=order.variant,
        components={one.name: one.revision for one in files.components},
        single_file=None if files.config is None else {"config": str(files.config.revision)},
        quantization=None if order.quantization is None else json.loads(order.quantization),
    )


def foundation(order: PipelineOrder, files: Files) -> Recipe:
    whole = recipe(order, files)
    return whole if order.fuses else replace(whole, loras=(), lora_mode="adapters")


def is_worth_keeping(order: PipelineOrder, files: Files) -> bool:
    """Whether building the foundation costs more than loading it would: it is fused, converted, quantised or cast."""
    if order.device_map is not None:
        return False
    return order.fuses or files.base.single is not None or order.quantization is not None or is_cast(order, files)


def is_cast(order: PipelineOrder, files: Files) -> bool:
    """Whether any weight is stored in another dtype than the one asked for."""
    if order.dtype is None:
        return False
    stored = (_FLOATS.get(found, order.dtype) for path in _weights(files) for found in stored_dtypes(path))
    return any(dtype != order.dtype for dtype in stored)


def _weights(files: Files) -> list[Path]:
    replaced = tuple(f"{name}/" for name in files.override_names)
    own = [files.base.path / path for path in files.base.files if needs.is_weights(path) and not path.startswith(replaced)]
    return own + [one.folder / path for one in files.components for path in one.files if needs.is_weights(path)]
