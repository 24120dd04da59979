"""What a caller of `load_pipeline` asks for, checked before anything is fetched or imported."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from hotshelf_shared.errors import InvalidRequest
from hotshelf_shared.patterns import Patterns
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
LORA_FIELDS = ("path", "scale")


@dataclass(frozen=True, slots=True)
class LoraOrder:
    """One LoRA: where its file is, and how much of it."""

    path: str
    scale: float = 1.0

    @classmethod
    def parse(cls, value: object) -> Self:
        body = {"path": value} if isinstance(value, str) else value
        if not isinstance(body, Mapping):
            raise InvalidRequest(f"a LoRA is a path or {{path, scale}}, not {type(value).__name__}")
        for name in body:
            if name not in LORA_FIELDS:
                raise InvalidRequest(f"a LoRA has an unknown field {str(name)[:80]!r}", hint=nearest(str(name), LORA_FIELDS))
        path = body.get("path")
        if not isinstance(path, str) or not path:
            raise InvalidRequest("a LoRA has no path", hint='Write {"path": "s3://BUCKET/KEY.safetensors", "scale": 0.7}.')
        if not path.startswith("/"):
            Source.parse(path)
        return cls(path, _scale(body.get("scale", 1.0), path))


@dataclass(frozen=True, slots=True)
class PipelineOrder:
    """All of `load_pipeline`'s arguments, in their one normal form. `dtype` and `device` are None for the library's own."""

    source: str
    loras: tuple[LoraOrder, ...] = ()
    device: str | None = None
    dtype: str | None = None
    attention: str = "auto"
    patterns: Patterns | None = None
    revision: str | None = None
    variant: str | None = None
    timeout_s: float = 600.0

    @classmethod
    def of(
        cls,
        source: str,
        *,
        loras: Iterable[object],
        device: object,
        dtype: object,
        attention: str,
        allow_patterns: object,
        ignore_patterns: object,
        revision: str | None,
        variant: str | None,
        timeout: float | None,
    ) -> Self:
        """Raises InvalidRequest naming the argument that cannot be meant."""
        if not isinstance(source, str) or not source:
            raise InvalidRequest("the pipeline's source is missing")
        if not source.startswith("/"):
            Source.parse(source)
        if isinstance(loras, str | Mapping):
            raise InvalidRequest("loras is a list", hint='Write loras=[{"path": …, "scale": …}].')
        if not isinstance(attention, str) or attention not in ATTENTION:
            raise InvalidRequest(f"attention {attention!r} is unknown", hint=nearest(str(attention), ATTENTION))
        if variant is not None and not (isinstance(variant, str) and variant.isalnum()):
            raise InvalidRequest(f"variant {variant!r} is not a word such as fp16")
        if not isinstance(loras or (), Iterable):
            raise InvalidRequest(f"loras is a list, not {type(loras).__name__}")
        patterns = Patterns.parse(allow_patterns, ignore_patterns)
        return cls(
            source=source,
            loras=tuple(LoraOrder.parse(one) for one in loras or ()),
            device=_device(device),
            dtype=_dtype(dtype),
            attention=attention,
            patterns=patterns or None,
            revision=revision,
            variant=variant,
            timeout_s=_timeout(timeout),
        )

    @property
    def base_device(self) -> str:
        """Where its base weights are kept: None is the library's default, which is the CPU."""
        return self.device or "cpu"

    @property
    def wish(self) -> PipelineOrder:
        """What of it says which files are wanted: equal wishes are answered with the same files."""
        return replace(self, device=None, dtype=None, attention="auto", timeout_s=0.0)


def _timeout(value: float | None) -> float:
    if value is None:
        return MAX_TIMEOUT_S
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidRequest(f"timeout is a number of seconds above 0, not {value!r}")
    return float(value)


def _scale(value: Any, path: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InvalidRequest(f"the scale of {path} is {value!r}, which is no finite number", hint="Write 0.7, for example.")
    return float(value)


def _dtype(value: object) -> str | None:
    """A dtype by name, or a torch.dtype."""
    if value is None:
        return None
    name = str(value).removeprefix("torch.")
    if name not in DTYPES:
        raise InvalidRequest(f"dtype {name!r} is not supported", hint=nearest(name, DTYPES))
    return DTYPES[name]


def _device(value: object) -> str | None:
    """A device by name, or a torch.device."""
    if value is None:
        return None
    name = str(value)
    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and not index.isdigit()):
        raise InvalidRequest(f"device {name!r} is not supported", hint=f"Known: {', '.join(DEVICES)}, or cuda:0.")
    return name
