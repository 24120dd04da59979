"""One argument of `load_pipeline` at a time: what cannot be meant is refused by name, before anything is fetched."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hotshelf_shared.errors import InvalidRequest
from hotshelf_shared.source import Source
from hotshelf_shared.wire import MAX_TIMEOUT_S, nearest

DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
}
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
ATTENTION = ("auto", "flash", "native", "none")
LORA_MODES = ("adapters", "fuse", "hotswap")
COMPILE_MODES = ("regional", "full", "aot")
OFFLOADS = ("model", "sequential", "group")
#: The package that does the work of each of diffusers' quantization backends: its version is part of the recipe.
_QUANTIZERS = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "quanto": "optimum-quanto", "gguf": "gguf"}


def where(value: object, what: str) -> str:
    """A source, a configured name or an absolute path."""
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{what} is missing", hint="Write s3://BUCKET/PREFIX, a configured name or an absolute path.")
    if not value.startswith("/"):
        Source.parse(value)
    return value


def scale(value: Any, path: str) -> float | tuple[tuple[str, float], ...]:
    """One number, or one per component as sorted pairs."""
    if isinstance(value, Mapping):
        if not value or not all(isinstance(name, str) and name.isidentifier() for name in value):
            raise InvalidRequest(f"the scales of {path} are not {{component: number}}", hint='Write {"unet": 0.7}.')
        return tuple(sorted((name, _number(one, f"{path} for {name}")) for name, one in value.items()))
    return _number(value, path)


def _number(value: Any, path: str) -> float:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not abs(value) <= sys.float_info.max:
        said = "too large" if known and isinstance(value, int) else repr(value)
        raise InvalidRequest(f"the scale of {path} is {said}, which is no finite number", hint="Write 0.7, for example.")
    return float(value)


def timeout(value: float | None) -> float:
    if value is None:
        return MAX_TIMEOUT_S
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidRequest(f"timeout is a number of seconds above 0, not {value!r}")
    return float(value)


def dtype(value: object) -> str | None:
    """A dtype by name, or a torch.dtype."""
    if value is None:
        return None
    name = str(value).removeprefix("torch.")
    if name not in DTYPES:
        raise InvalidRequest(f"dtype {name!r} is not supported", hint=nearest(name, DTYPES))
    return DTYPES[name]


def device(value: object) -> str | None:
    """A device by name, or a torch.device."""
    if value is None:
        return None
    name = str(value)
    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and not index.isdigit()):
        raise InvalidRequest(f"device {name!r} is not supported", hint=f"Known: {', '.join(DEVICES)}, or cuda:0.")
    return name


def word(value: object, what: str, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise InvalidRequest(f"{what} {value!r} is unknown", hint=nearest(str(value)[:80], known))
    return value


def identifier(value: object, what: str) -> str | None:
    if value is not None and not (isinstance(value, str) and value.isidentifier()):
        raise InvalidRequest(f"{what} {value!r} is no name")
    return value


def snapshot(value: object) -> bool | None:
    """True and False as they are; None for ``auto``."""
    if value == "auto":
        return None
    if not isinstance(value, bool):
        raise InvalidRequest(f"snapshot is 'auto', True or False, not {value!r}")
    return value


def compile_mode(value: object) -> str | None:
    """A mode by name; None for False. True is ``regional``: the shortest compiling that is of use."""
    if isinstance(value, bool) or value is None:
        return "regional" if value else None
    return word(value, "compile", COMPILE_MODES)


def quantization(value: Any) -> str | None:
    """What a quantization config says, as canonical JSON with its library's version; None without one."""
    if value is None:
        return None
    said = _plain(value)
    if not isinstance(said, dict):
        raise InvalidRequest(f"quantization_config is a mapping or one of diffusers' configs, not {type(value).__name__}")
    text = json.dumps(said, sort_keys=True)
    libraries = {package for name, package in _QUANTIZERS.items() if name in text.lower()}
    return json.dumps({"config": said, "libraries": {one: _version(one) for one in sorted(libraries)}}, sort_keys=True)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    """Nested values as JSON; an object is its class and its public attributes."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if attributes := {name: one for name, one in getattr(value, "__dict__", {}).items() if not name.startswith("_")}:
        return {"class": type(value).__name__, **_plain(attributes)}
    return str(value)
