"""LoRAs onto a pipeline whose modules are its own: each file as one adapter, in order, with its scale.

A LoRA that does not fit is refused as a whole, naming what does not fit first. The base cannot suffer: it is another
object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from hotshelf.pipelines import fitting, reading, tensors
from hotshelf.pipelines.adapters import Adapters
from hotshelf.pipelines.files import LoraFile
from hotshelf.pipelines.loading import first_line
from hotshelf.pipelines.sharing import mark_shared
from hotshelf_shared.errors import InvalidRequest
from hotshelf_shared.wire import nearest

if TYPE_CHECKING:
    pass

#: Adapters are padded to this rank, so that others of up to it can take their place.
HOTSWAP_RANK = 64


def apply(pipe: Any, loras: Sequence[LoraFile], shelf: Adapters | None = None, *, hotswap: bool = False) -> list[str]:
    """Loads every LoRA and sets the scales; the adapters' names. `shelf` keeps what is read for the next pipeline.

    Raises InvalidRequest naming the first LoRA that does not fit, and where.
    """
    if hotswap:
        _prepare_hotswap(pipe, loras)
    if not loras:
        return []
    if not hasattr(pipe, "load_lora_weights"):
        raise InvalidRequest(f"{type(pipe).__name__} takes no LoRAs", hint="Load it without `loras`.")
    names = [f"lora_{position}" for position in range(len(loras))]
    for lora in loras:
        _check_scales(pipe, lora)
    for name, lora in zip(names, loras, strict=True):
        _load(pipe, name, lora, None if hotswap else shelf)  # a swap writes into the adapter's tensors
    if hotswap:
        _check_hotswap(pipe, names, loras)
    pipe.set_adapters(names, [lora.order.weight for lora in loras])
    if hotswap:
        for name, lora in zip(names, loras, strict=True):
            _scale_in_place(pipe, name, lora.order.weight, own=partial(_own_scale, name))
    return names


def fuse(pipe: Any, loras: Sequence[LoraFile], shelf: Adapters | None = None) -> frozenset[str]:
    """Merges every LoRA into the weights, which the pipeline then owns; the names of the components that this changed."""
    names = apply(pipe, loras, shelf)
    touched = {layer.partition(".")[0] for name in names for layer in fitting.adapted(pipe, name)}
    try:
        pipe.fuse_lora(components=sorted(touched), adapter_names=names)
        pipe.unload_lora_weights()
    except Exception as error:
        raise InvalidRequest(
            f"the LoRAs cannot be fused into {type(pipe).__name__}: {first_line(error)}", hint="Use lora_mode='adapters'."
        ) from error
    return frozenset(touched)


def swap(pipe: Any, lora: LoraFile, position: int = 0) -> None:
    """Replaces the LoRA at `position` of a pipeline made with lora_mode="hotswap": no layer is added, nothing recompiles."""
    name = f"lora_{position}"
    _check_scales(pipe, lora)
    if not fitting.adapted(pipe, name):
        raise InvalidRequest(f"this pipeline has no LoRA at position {position} to swap", hint="See explain(pipe)['loras'].")
    _load(pipe, name, lora, None, hotswap=True)
    # By now each layer's scaling is the new file's own.
    _scale_in_place(pipe, name, lora.order.weight, own=lambda layer: float(layer.scaling[name]))


def _own_scale(name: str, layer: Any) -> float:
    return float(layer.lora_alpha[name] / layer.r[name])


def _scale_in_place(pipe: Any, name: str, weight: float | dict[str, float], *, own: Callable[[Any], float]) -> None:
    """Sets the adapter's scale in tensors, which a compiled pipeline reads anew; `own` is what a layer's file asks for."""
    import torch

    for component, module in fitting.modules_of(pipe).items():
        factor = weight.get(component, 1.0) if isinstance(weight, dict) else weight
        for layer in module.modules():
            if name not in getattr(layer, "scaling", ()):
                continue
            whole: Any = layer
            scaling = own(whole)
            whole.lora_alpha[name] = scaling * whole.r[name]
            if isinstance(whole.scaling[name], torch.Tensor):
                whole.scaling[name].fill_(scaling * factor)
            else:
                whole.scaling[name] = torch.tensor(scaling * factor, device=whole.weight.device)


def _prepare_hotswap(pipe: Any, loras: Sequence[LoraFile]) -> None:
    if not hasattr(pipe, "enable_lora_hotswap"):
        raise InvalidRequest(f"{type(pipe).__name__} cannot swap LoRAs", hint="Use lora_mode='adapters'.")
    ranks = [rank for lora in loras for rank in _ranks(lora)]
    pipe.enable_lora_hotswap(target_rank=max([HOTSWAP_RANK, *ranks]))


def _check_hotswap(pipe: Any, names: Sequence[str], loras: Sequence[LoraFile]) -> None:
    for name, lora in zip(names, loras, strict=True):
        if text := sorted(layer for layer in fitting.adapted(pipe, name) if layer.startswith("text_encoder")):
            raise fitting.misfit(pipe, lora, f"hotswap takes no text-encoder LoRA, and it has {text[0]}")


def _ranks(lora: LoraFile) -> list[int]:
    """The ranks of its layers, from the file's header."""
    shapes = tensors.shapes(lora.path)
    return [min(shape) for key, shape in shapes.items() if "lora" in key.lower() and len(shape) >= 2]


def _check_scales(pipe: Any, lora: LoraFile) -> None:
    if not isinstance(lora.order.weight, dict):
        return
    known = getattr(pipe, "_lora_loadable_modules", ())
    for name in lora.order.weight:
        if name not in known:
            raise InvalidRequest(
                f"the LoRA {lora.order.path} has a scale for {name!r}, and {type(pipe).__name__} has no such component",
                hint=nearest(name, known),
            )


def _load(pipe: Any, name: str, lora: LoraFile, shelf: Adapters | None, *, hotswap: bool = False) -> None:
    try:
        with _reading(pipe, lora, shelf, swapping=hotswap) as wanted:
            pipe.load_lora_weights(
                str(lora.path.parent),
                weight_name=lora.path.name,
                adapter_name=name,
                local_files_only=True,
                use_safetensors=True,
                **({"hotswap": True} if hotswap else {}),
            )
    except Exception as error:
        raise fitting.misfit(pipe, lora, fitting.why(error, lora)) from error
    found = fitting.adapted(pipe, name)
    if not found or len(found) < len(wanted):
        first = next(
            (layer for layer in wanted if fitting.canonical(layer) not in {fitting.canonical(one) for one in found}), None
        )
        where = f"; the first without is {first}" if first else ""
        raise fitting.misfit(pipe, lora, f"only {len(found)} of its {len(wanted)} layers have a place in this pipeline{where}")
    if shelf is not None:
        mark_shared(parameter for parameter in fitting.parameters(pipe, name))


@contextmanager
def _reading(pipe: Any, lora: LoraFile, shelf: Adapters | None, *, swapping: bool) -> Iterator[list[str]]:
    """The layers that the file is for, as diffusers reads it: every layout in the names of its own, kohya's included.

    What diffusers made of the file is kept on the shelf; a second reading of it is answered from there.
    """
    read, wanted = pipe.lora_state_dict, list[str]()

    def noting(*args: Any, **options: Any) -> Any:
        key = (lora.digest, type(pipe).__name__, repr(sorted(options.items(), key=str)))
        answer = shelf.get(key) if shelf is not None else None
        if answer is None:
            reading.ahead(lora.path)
            answer = read(*args, **options)
            if shelf is not None:
                shelf.keep(key, answer, lora.path.stat().st_size)
        parts = answer if isinstance(answer, tuple) else (answer,)
        if swapping:
            fitting.check_shapes(pipe, parts[0])
        wanted.extend(fitting.layers(parts[0]))
        # Whoever loads takes names out of these mappings: out of copies.
        fresh = tuple(dict(part) if isinstance(part, dict) else part for part in parts)
        return fresh if isinstance(answer, tuple) else fresh[0]

    pipe.__dict__["lora_state_dict"] = noting
    try:
        yield wanted
    finally:
        del pipe.__dict__["lora_state_dict"]
