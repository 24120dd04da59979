"""What a built pipeline is made of, and the key that says so: the same recipe has the same key on every machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from hotshelf_shared.digest import Digest, Revision

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class LoraRecipe:
    """One LoRA by content; `scale` may be a mapping of component → scale. Their order is part of the recipe."""

    digest: Digest
    scale: float | Mapping[str, float] = 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """`base` is the revision of exactly the files that were loaded; `quantization` names its library's version too."""

    base: Revision
    loras: tuple[LoraRecipe, ...] = ()
    lora_mode: str = "adapters"
    dtype: str | None = None
    variant: str | None = None
    components: Mapping[str, Revision] = field(default_factory=dict)
    single_file: Mapping[str, Any] | None = None
    quantization: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "components": dict(self.components),
            "single_file": self.single_file,
            "loras": [[lora.digest, _scales(lora.scale)] for lora in self.loras],
            "lora_mode": self.lora_mode,
            "dtype": self.dtype,
            "variant": self.variant,
            "quantization": self.quantization,
            "format": FORMAT_VERSION,
        }

    @property
    def key(self) -> str:
        """64 hex digits: sha256 over canonical JSON (keys sorted, no white space, UTF-8)."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return sha256(text.encode()).hexdigest()


def _scales(scale: float | Mapping[str, float]) -> float | dict[str, float]:
    """Always floats: 1 and 1.0 are the same scale and must be the same key."""
    return {name: float(value) for name, value in scale.items()} if isinstance(scale, Mapping) else float(scale)
