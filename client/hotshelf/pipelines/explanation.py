"""How each pipeline was made, known for as long as it lives; its leases live as long."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hotshelf.pipelines import recipes
from hotshelf_shared.errors import InvalidRequest

if TYPE_CHECKING:
    from hotshelf.lease import Lease
    from hotshelf.pipelines.build import Built
    from hotshelf.pipelines.compilation import Report
    from hotshelf.pipelines.files import Files, LoraFile
    from hotshelf.pipelines.memory import BaseKey
    from hotshelf.pipelines.order import PipelineOrder


@dataclass(slots=True)
class _Made:
    how: dict[str, Any]
    leases: tuple[Lease, ...]
    base: BaseKey
    compiled: Report


_made: weakref.WeakKeyDictionary[Any, _Made] = weakref.WeakKeyDictionary()


def record(
    order: PipelineOrder,
    files: Files,
    built: Built,
    phases: Mapping[str, float],
    *,
    snapshot: dict[str, Any],
    compiled: Report,
) -> None:
    """`snapshot` says whether it is kept for others; whoever saves it goes on writing there, and who compiles in `compiled`."""
    how = {
        "source": order.source,
        "revision": files.base.revision,
        "pipeline_key": recipes.recipe(order, files).key,
        "loras": [_lora(lora) for lora in files.loras],
        "lora_mode": order.lora_mode,
        "components": {one.name: {"source": one.order.source, "revision": one.revision} for one in files.components},
        "attention": built.attention.to_json(),
        "dtype": built.dtype,
        "device": built.device,
        "served_from": built.served_from,
        "reading": built.reading.how,
        "copied": built.reading.copied,
        "snapshot": snapshot,
        "phases": {name: round(seconds, 4) for name, seconds in phases.items()},
    }
    _made[built.pipe] = _Made(how, files.leases, built.base, compiled)


def explain(pipe: Any) -> dict[str, Any]:
    """How a pipeline that `load_pipeline` returned was made. Raises InvalidRequest for any other object."""
    made = _of(pipe)
    return {**copy.deepcopy(made.how), "compile": made.compiled.to_json()}


def base_of(pipe: Any) -> BaseKey:
    """What its clean weights are kept as."""
    return _of(pipe).base


def swapped(pipe: Any, position: int, lora: LoraFile) -> None:
    """Another LoRA has taken the place of one."""
    made = _of(pipe)
    made.how["loras"][position] = _lora(lora)
    made.leases = (*made.leases, *((lora.lease,) if lora.lease is not None else ()))


def _lora(lora: LoraFile) -> dict[str, Any]:
    return {"path": lora.order.path, "digest": lora.digest, "scale": lora.order.weight}


def _of(pipe: Any) -> _Made:
    try:
        return _made[pipe]
    except (KeyError, TypeError):
        raise InvalidRequest("this pipeline was not made by hotshelf.load_pipeline") from None
