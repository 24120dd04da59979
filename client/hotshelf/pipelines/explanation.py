"""How each pipeline was made, known for as long as it lives; its leases live as long."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hotshelf_shared.errors import InvalidRequest
from hotshelf_shared.recipe import LoraRecipe, Recipe

if TYPE_CHECKING:
    from hotshelf.lease import Lease
    from hotshelf.pipelines.build import Built
    from hotshelf.pipelines.files import Files
    from hotshelf.pipelines.order import PipelineOrder


@dataclass(frozen=True, slots=True)
class _Made:
    how: dict[str, Any]
    leases: tuple[Lease, ...]


_made: weakref.WeakKeyDictionary[Any, _Made] = weakref.WeakKeyDictionary()


def record(order: PipelineOrder, files: Files, built: Built, phases: Mapping[str, float]) -> None:
    recipe = Recipe(
        base=files.base.revision,
        loras=tuple(LoraRecipe(lora.digest, lora.order.scale) for lora in files.loras),
        dtype=built.dtype,
        variant=order.variant,
    )
    how = {
        "source": order.source,
        "revision": files.base.revision,
        "pipeline_key": recipe.key,
        "loras": [{"path": lora.order.path, "digest": lora.digest, "scale": lora.order.scale} for lora in files.loras],
        "attention": built.attention.to_json(),
        "dtype": built.dtype,
        "device": built.device,
        "served_from": built.served_from,
        "phases": {name: round(seconds, 4) for name, seconds in phases.items()},
    }
    _made[built.pipe] = _Made(how, files.leases)


def explain(pipe: Any) -> dict[str, Any]:
    """How a pipeline that `load_pipeline` returned was made. Raises InvalidRequest for any other object."""
    try:
        return copy.deepcopy(_made[pipe].how)
    except (KeyError, TypeError):
        raise InvalidRequest("this pipeline was not made by hotshelf.load_pipeline") from None
