"""Components that are not the base's own: which class they are, whether it fits the place, and how they are loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotshelf.pipelines.files import ComponentFiles, Files
from hotshelf.pipelines.loading import first_line
from hotshelf.pipelines.order import PipelineOrder
from hotshelf.pipelines.reading import Reading
from hotshelf_shared.errors import InvalidRequest, UnsafeContent

_CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json", "tokenizer_config.json")
_LIBRARIES = ("diffusers", "transformers")


def load(one: ComponentFiles, order: PipelineOrder, files: Files, pipeline: Any, reading: Reading) -> Any:
    """The component. Raises InvalidRequest when it does not fit the place or cannot be built, UnsafeContent for code."""
    import torch

    cls = _class(one, files.index.get(one.name))
    _check_fits(one, cls, pipeline, files.index.get(one.name))
    options: dict[str, Any] = {"local_files_only": True}
    if isinstance(cls, type) and issubclass(cls, torch.nn.Module) and order.dtype is not None:
        options["torch_dtype"] = getattr(torch, order.dtype)
    if reading.component(one, cls.__module__.partition(".")[0]):
        options["disable_mmap"] = True
    try:
        if one.single is None:
            if isinstance(cls, type) and issubclass(cls, torch.nn.Module):
                options["use_safetensors"] = True
            return cls.from_pretrained(str(one.folder), **options)
        return cls.from_single_file(
            str(one.folder / one.single), config=str(files.description.path), subfolder=one.name, **options
        )
    except Exception as error:
        raise InvalidRequest(
            f"{one.order.source} cannot be built into the {one.name}, a {cls.__name__}: {first_line(error)}",
            hint="Name a component as save_pretrained writes it, with its `subfolder` where it lies in a pipeline.",
        ) from error


def entry(part: Any) -> list[str]:
    """What model_index.json says of a component: its library and class."""
    return [type(part).__module__.partition(".")[0], type(part).__name__]


def is_converted(files: Files, name: str, part: Any) -> bool:
    """Whether the component is of another class than its files say: the pipeline made something else of it."""
    indexed = files.index.get(name)
    one = next((one for one in files.components if one.name == name), None)
    if one is not None:
        return type(part) is not _class(one, indexed)
    return not isinstance(indexed, list) or len(indexed) != 2 or type(part).__name__ != indexed[1]


def _class(one: ComponentFiles, indexed: object) -> Any:
    """What its own configuration says, else what the base's index says of that place."""
    said = {} if one.single is not None else _configuration(one.folder, one.files)
    names = [said.get("_class_name"), *(said.get("architectures") or ()), said.get("image_processor_type")]
    if isinstance(said.get("_class_name"), list) or "auto_map" in said:
        raise UnsafeContent(f"{one.order.source} names code to import", hint="Load it with plain diffusers.")
    if isinstance(indexed, list) and len(indexed) == 2:
        names.append(indexed[1])
    for name in names:
        if isinstance(name, str) and name.isidentifier() and (found := _find(name)) is not None:
            return found
    raise InvalidRequest(
        f"{one.order.source} does not say what class of {one.name} it is",
        hint="Name a component as save_pretrained writes it: with its config.json.",
    )


def _configuration(folder: Path, files: Mapping[str, object]) -> dict[str, Any]:
    for name in _CONFIGS:
        if name in files:
            try:
                body = json.loads((folder / name).read_bytes())
            except (OSError, ValueError, RecursionError):
                continue
            if isinstance(body, dict):
                return body
    return {}


def _find(name: str) -> Any | None:
    import importlib

    for library in _LIBRARIES:
        found = getattr(importlib.import_module(library), name, None)
        if isinstance(found, type) and hasattr(found, "from_pretrained"):
            return found
    return None


def _check_fits(one: ComponentFiles, cls: Any, pipeline: Any, indexed: object) -> None:
    """By the pipeline's own signature, and by kind: an AutoencoderTiny does where an AutoencoderKL is asked for."""
    expected = [kind for kind in pipeline._get_signature_types().get(one.name, ()) if isinstance(kind, type)]
    if not expected:
        raise InvalidRequest(
            f"a {pipeline.__name__} has no component {one.name!r}",
            hint=f"Its components: {', '.join(sorted(pipeline._get_signature_types()))}.",
        )
    named = indexed[1] if isinstance(indexed, list) and len(indexed) == 2 else None
    if cls.__name__ != named and not any(_is_kind_of(cls, kind) for kind in expected):
        names = " or ".join(sorted({kind.__name__ for kind in expected}))
        raise InvalidRequest(
            f"{one.order.source} is a {cls.__name__}, and the {one.name} of a {pipeline.__name__} is a {names}",
            hint="Choose a component that was made for this place.",
        )


def _is_kind_of(cls: Any, expected: Any) -> bool:
    if issubclass(cls, expected):
        return True
    if "Scheduler" in expected.__name__:  # KarrasDiffusionSchedulers is an enumeration of names
        return str(cls.__name__).endswith("Scheduler")
    families = ("Autoencoder", "Tokenizer")
    return any(family in cls.__name__ and family in expected.__name__ for family in families)
