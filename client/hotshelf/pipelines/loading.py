"""From files to a pipeline by diffusers' own `from_pretrained`: whatever goes wrong becomes a HotshelfError.

Everything that constructs is done one at a time in a process, under `constructing`: diffusers, transformers, accelerate
and peft patch torch globally while they construct modules. Drawing needs no lock.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotshelf.pipelines import needs
from hotshelf.pipelines.files import Files
from hotshelf.pipelines.order import PipelineOrder
from hotshelf.pipelines.quiet import importing_quietly
from hotshelf_shared.errors import HotshelfError, InvalidRequest, UnsafeContent

constructing = threading.RLock()


class UnusableSnapshot(InvalidRequest):
    """What somebody kept cannot be loaded here: by other versions of the libraries, say. It is built anew."""


#: What a component may come from, besides the modules of diffusers.pipelines: the daemon's list.
_LIBRARIES = frozenset({"diffusers", "transformers", "tokenizers", "peft", "onnxruntime", "optimum"})


def import_libraries() -> float:
    """Seconds. Raises HotshelfError saying what to install."""
    began = time.monotonic()
    try:
        with constructing, importing_quietly():
            import diffusers
            import torch  # noqa: F401

            _ = diffusers.DiffusionPipeline  # lazily imported by diffusers: now, while files arrive, and not later
            _prepare_transformers()
    except ImportError as error:
        raise HotshelfError(
            f"load_pipeline needs {error.name}", hint="pip install 'hotshelf[worker]' in the worker's environment."
        ) from error
    return time.monotonic() - began


def _prepare_transformers() -> None:
    """transformers 5 compiles a thousand expressions when it first loads anything, for 0.15 s: while files arrive, too."""
    with contextlib.suppress(Exception):  # a version that has none of it needs none of it
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("clip")


def resolve_device(device: str | None) -> str | None:
    """The device that `auto` means here; any other as it is. Raises InvalidRequest when this machine has no such device."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device is None or device == "cpu":
        return device
    kind, _, index = device.partition(":")
    counts = {
        "cuda": torch.cuda.device_count,
        "mps": lambda: int(torch.backends.mps.is_available()),
        "xpu": lambda: torch.xpu.device_count() if hasattr(torch, "xpu") else 0,
        "cpu": lambda: 1,
    }
    count = counts[kind]()
    if int(index or 0) >= count:
        raise InvalidRequest(
            f"there is no device {device} here ({count} of that kind)", hint="Use device='auto', or fix the driver."
        )
    return device


def load(
    order: PipelineOrder, files: Files, parts: Mapping[str, Any], *, cls: Any, weights: frozenset[str], mapped: bool = True
) -> Any:
    """The clean pipeline, given the components that are there already; `weights` names those that have weights.

    Unless `mapped`, diffusers reads its own models' files as a whole.

    Call it under `constructing`. Raises InvalidRequest.
    """
    import torch

    options: dict[str, Any] = {"local_files_only": True, **parts}
    if not mapped:
        options["disable_mmap"] = True
    if order.dtype is not None:
        options["torch_dtype"] = getattr(torch, order.dtype)
    if order.quantization_config is not None and files.snapshot is None and not weights <= parts.keys():
        options["quantization_config"] = _quantization(order.quantization_config)
    if order.device_map is not None:
        options["device_map"] = order.device_map
    if files.snapshot is not None:
        try:
            return _built(cls.from_pretrained, files.snapshot.path, cls, {**options, "use_safetensors": True})
        except InvalidRequest as error:
            raise UnusableSnapshot(error.message, hint=error.hint) from error
    if files.base.single is not None and files.config is not None and not weights <= parts.keys():
        checkpoint = files.base.path / files.base.single
        return _built(cls.from_single_file, checkpoint, cls, {**options, "config": str(files.config.path)})
    if order.variant is not None:
        options["variant"] = order.variant
    return _built(cls.from_pretrained, files.description.path, cls, {**options, "use_safetensors": True})


def _built(make: Any, path: Path, cls: Any, options: Mapping[str, Any]) -> Any:
    try:
        return make(str(path), **options)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InvalidRequest(
            f"{path} cannot be built into a {cls.__name__}: {first_line(error)}",
            hint="Does plain diffusers load it? `hotshelf verify` checks the bytes; see the cause for the rest.",
        ) from error


def _quantization(config: Any) -> Any:
    """A mapping becomes diffusers' own config; of an object, a copy: diffusers writes into what it is given."""
    if not isinstance(config, Mapping):
        return copy.deepcopy(config)
    from diffusers import PipelineQuantizationConfig
    from diffusers.quantizers.auto import DiffusersAutoQuantizer

    try:
        given = dict(config)
        if isinstance(given.get("quant_mapping"), Mapping):
            given["quant_mapping"] = {
                name: DiffusersAutoQuantizer.from_dict(dict(one)) if isinstance(one, Mapping) else copy.deepcopy(one)
                for name, one in given["quant_mapping"].items()
            }
        return PipelineQuantizationConfig(**given)
    except Exception as error:
        raise InvalidRequest(
            f"quantization_config: {first_line(error)}",
            hint='Write {"quant_mapping": {"transformer": {"quant_method": "torchao", …}}}, or see PipelineQuantizationConfig.',
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def pipeline_class(index: Mapping[str, Any], wanted: str | None) -> Any:
    """The class to make: the index's own, or another that takes the same components (img2img, ControlNet, …)."""
    import diffusers

    check_index(index)
    if wanted is None:
        return getattr(diffusers, index["_class_name"])
    found = getattr(diffusers, wanted, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise InvalidRequest(f"diffusers {diffusers.__version__} knows no pipeline class {wanted[:80]!r}")
    return found


def check_index(index: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for a class that diffusers does not have, UnsafeContent for what would import code."""
    import diffusers

    for component, (library, _) in needs.components(index).items():
        if library not in _LIBRARIES and not hasattr(diffusers.pipelines, library):
            raise UnsafeContent(
                f"model_index.json: {component} comes from the library {library[:80]!r}", hint="Load it with plain diffusers."
            )
    name = index["_class_name"]
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise InvalidRequest(
            f"diffusers {diffusers.__version__} knows no pipeline class {name!r}",
            hint="Install a newer diffusers in the worker, or correct model_index.json.",
        )


def first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:300]
