"""Which files a pipeline needs, said by its own `model_index.json`, and what that index may not ask for. Pure.

`from_pretrained` reads the index and each component's folder, of the weights one variant in safetensors. Other formats,
other variants and whatever else lies in the repository stay where they are.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

from hotshelf_shared.errors import InvalidRequest, UnsafeContent
from hotshelf_shared.patterns import Patterns

INDEX = "model_index.json"
WEIGHT_ENDINGS = (".safetensors", ".sft")
_OTHER_FORMATS = ("bin", "msgpack", "h5", "onnx", "onnx_data", "onnx_data*", "xml", "ot", "ckpt", "pt", "pth", "gguf", "tflite")
_WEIGHTS = ("model", "diffusion_pytorch_model")
#: Everything that describes a pipeline, and nothing that holds its weights.
CONFIGURATION = Patterns.parse(None, [f"*.{other}" for other in (*_OTHER_FORMATS, "safetensors", "sft")])
#: Endings of classes that are saved without weights.
_WEIGHTLESS = ("Tokenizer", "TokenizerFast", "Scheduler", "Processor", "FeatureExtractor", "ImageProcessorPil")


def is_weights(path: str) -> bool:
    return path.lower().endswith(WEIGHT_ENDINGS)


def is_weightless(class_name: str) -> bool:
    return class_name.endswith(_WEIGHTLESS)


def check_weights_file(path: str) -> None:
    """Raises UnsafeContent: what the daemon leaves out of a snapshot is not loaded from this machine either."""
    if not is_weights(path):
        raise UnsafeContent(
            f"{path} is no safetensors file", hint="Convert it: other formats can execute when they are loaded."
        )


def check_config(source: str, single: str | None, config: str | None) -> None:
    """A checkpoint in one file does not say what it is: that stands in a folder. Raises InvalidRequest."""
    if single is not None and config is None:
        raise InvalidRequest(
            f"{source} is a single file: what its parts are is not in it",
            hint="Give config=SOURCE, a folder with model_index.json and the configurations of this kind of model.",
        )
    if single is None and config is not None:
        raise InvalidRequest(f"config={config!r} goes with a single-file checkpoint, and {source} is a folder")


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json`. Raises InvalidRequest when the folder is no pipeline, UnsafeContent when it brings code."""
    try:
        body = json.loads((folder / INDEX).read_bytes())
    except FileNotFoundError:
        raise no_pipeline(str(folder)) from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{folder / INDEX} is not JSON: {error}", hint="Save the pipeline again.") from error
    name = body.get("_class_name") if isinstance(body, dict) else None
    if isinstance(name, list):
        raise UnsafeContent(
            f"{folder / INDEX}: _class_name is a list: it names code to import", hint="Load it with plain diffusers."
        )
    if not isinstance(name, str) or not name.isidentifier():
        raise InvalidRequest(f"{folder / INDEX} names no pipeline class", hint="Save the pipeline with save_pretrained.")
    return dict(body)


def no_pipeline(where: str) -> InvalidRequest:
    return InvalidRequest(
        f"{where} has no {INDEX}: it is no diffusers pipeline",
        hint="Name the folder that save_pretrained wrote; for a single-file checkpoint name the file, and give config=….",
    )


def components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """(library, class) of every component that is there; a null one is not."""
    return {
        name: (value[0], value[1])
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], str)
    }


def folders(name: str, class_name: str) -> tuple[str, ...]:
    """Globs of where a component lies: several ControlNets are one component, in a folder each."""
    return (name, f"{name}_[1-9]") if class_name.endswith("MultiControlNetModel") else (name,)


def owner(index: Mapping[str, Any], path: str) -> str:
    """The component that a file is of."""
    top = path.partition("/")[0]
    several = (name for name, (_, cls) in components(index).items() for one in folders(name, cls) if fnmatchcase(top, one))
    return next(several, top)


def patterns(index: Mapping[str, Any], variant: str | None, plain: Collection[str] = ()) -> Patterns:
    """The patterns of what will be read. With a `variant`, `plain` names the components that are read without it."""
    allow, ignore = [INDEX], [f"*.{other}" for other in _OTHER_FORMATS]
    found = [(name, folder, cls) for name, (_, cls) in sorted(components(index).items()) for folder in folders(name, cls)]
    for name, folder, cls in found:
        if variant is None or is_weightless(cls):
            allow.append(f"{folder}/*")
        else:
            allow += [f"{folder}/*.json", f"{folder}/*.{variant}.safetensors", f"{folder}/*.{variant}-*.safetensors"]
        if name in plain:
            allow += [f"{folder}/{weights}{rest}" for weights in _WEIGHTS for rest in (".safetensors", "-*.safetensors")]
    if variant is None:
        ignore += ["*.*.safetensors", "*.*.sft"]  # model.fp16.safetensors: a plain weight file's name has no other dot
    return Patterns.parse(allow, ignore)


def component_patterns(folder: str) -> Patterns:
    """What of a component's folder will be read: configurations, and plain weights in safetensors."""
    inside = f"{escape(folder)}/" if folder else ""  # a folder's own name may have dots
    ignore = [*(f"*.{other}" for other in _OTHER_FORMATS), f"{inside}*.*.safetensors", f"{inside}*.*.sft"]
    return Patterns.parse([f"{inside}*"] if folder else None, ignore)


def lacking(index: Mapping[str, Any], files: Collection[str]) -> list[str]:
    """The components that want weights and, in `files`, have none."""
    wanting = [name for name, (_, cls) in components(index).items() if not is_weightless(cls)]
    return [n for n in wanting if not any(path.startswith(f"{n}/") and is_weights(path) for path in files)]


def refuse_code(folder: Path, files: Collection[str]) -> None:
    """The daemon refuses these at its door; a folder of this machine comes through no door. Raises UnsafeContent."""
    for path in files:
        if path.endswith("config.json"):
            try:
                body = json.loads((folder / path).read_bytes())
            except (ValueError, RecursionError):
                continue  # the library that reads it says so better
            if isinstance(body, dict) and "auto_map" in body:
                raise UnsafeContent(f"{path}: auto_map names code to import", hint="Load it with plain diffusers.")
