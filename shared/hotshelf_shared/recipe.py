"""What a built pipeline is made of, and the key that says so: the same recipe has the same key on every machine.

Invariant: what `parse` returns has been checked to the last field, so its key can be recomputed and believed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Self

from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import InvalidRequest

FORMAT_VERSION = 1
MAX_RECIPE_BYTES = 256 << 10
MAX_LORAS = 256
MAX_NAME_CHARS = 200
MAX_DEPTH = 16
_FIELDS = frozenset(
    ("base", "components", "single_file", "loras", "lora_mode", "dtype", "variant", "quantization", "format")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoraRecipe:
    """One LoRA by content; `scale` may be a mapping of component → scale. Their order is part of the recipe."""

    digest: Digest
    scale: float | Mapping[str, float] = 1.0

    @classmethod
    def parse(cls, value: object) -> Self:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise InvalidRequest("a LoRA of the recipe is [digest, scale]")
        digest, scale = value
        if isinstance(scale, Mapping):
            return cls(Digest.parse(digest), {_name(part, "a LoRA's component"): _scale(one) for part, one in scale.items()})
        return cls(Digest.parse(digest), _scale(scale))


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

    @classmethod
    def parse(cls, body: object) -> Self:
        """From `to_json`; what has a default may be left out. Raises InvalidRequest on anything else."""
        if not isinstance(body, dict):
            raise InvalidRequest("the recipe is a JSON object")
        if unknown := sorted(str(name)[:80] for name in body.keys() - _FIELDS):
            raise InvalidRequest(
                f"the recipe has an unknown field {unknown[0]!r}", hint=f"Known: {', '.join(sorted(_FIELDS))}."
            )
        if body.get("format") != FORMAT_VERSION or isinstance(body["format"], bool):
            raise InvalidRequest(
                f"the recipe's format is {str(body.get('format'))[:80]!r}, not {FORMAT_VERSION}",
                hint="Builder and daemon are of different versions: upgrade the older one.",
            )
        loras, components = body.get("loras", []), body.get("components", {})
        if not isinstance(loras, list) or len(loras) > MAX_LORAS:
            raise InvalidRequest(f"the recipe's loras are a list of {MAX_LORAS} at the most")
        if not isinstance(components, dict):
            raise InvalidRequest("the recipe's components are an object of name → revision")
        recipe = cls(
            base=Revision.parse(body.get("base")),
            loras=tuple(LoraRecipe.parse(lora) for lora in loras),
            lora_mode=_name(body.get("lora_mode", "adapters"), "lora_mode"),
            dtype=_optional_name(body, "dtype"),
            variant=_optional_name(body, "variant"),
            components={_name(part, "a component"): Revision.parse(one) for part, one in components.items()},
            single_file=_optional_object(body, "single_file"),
            quantization=_optional_object(body, "quantization"),
        )
        if len(recipe.canonical()) > MAX_RECIPE_BYTES:
            raise InvalidRequest(f"the recipe is over {MAX_RECIPE_BYTES:,} bytes")
        return recipe

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

    def canonical(self) -> bytes:
        """UTF-8 JSON, keys sorted, no white space: the bytes whose digest is the key."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()

    @property
    def key(self) -> str:
        """64 hex digits: sha256 over the canonical JSON."""
        return sha256(self.canonical()).hexdigest()


def check_plain(value: object, what: str, depth: int = MAX_DEPTH) -> Any:
    """`value` if JSON can say it the same way everywhere: no NaN, no lone surrogates, no bottomless nesting, no huge integers.

    Raises InvalidRequest.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, what)
    if isinstance(value, int) and abs(value) < 1 << 63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if depth and isinstance(value, list):
        return [check_plain(one, what, depth - 1) for one in value]
    if depth and isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {_text(name, what): check_plain(one, what, depth - 1) for name, one in value.items()}
    raise InvalidRequest(f"{what} holds {str(value)[:80]!r}, which is no plain JSON or is nested too deeply")


def _text(value: str, what: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{what} holds text that is not valid Unicode") from None
    return value


def _name(value: object, what: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARS or not value.isprintable():
        raise InvalidRequest(f"{what} is a name of 1 to {MAX_NAME_CHARS} printable characters, not {str(value)[:80]!r}")
    return value


def _optional_name(body: Mapping[str, Any], field_name: str) -> str | None:
    return None if body.get(field_name) is None else _name(body[field_name], field_name)


def _optional_object(body: Mapping[str, Any], field_name: str) -> dict[str, Any] | None:
    value = body.get(field_name)
    if value is not None and not isinstance(value, dict):
        raise InvalidRequest(f"the recipe's {field_name} is an object or null")
    return None if value is None else dict(check_plain(value, field_name))


def _scale(value: object) -> float:
    """Raises InvalidRequest unless it is a finite number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise InvalidRequest(f"a LoRA's scale is a finite number, not {str(value)[:80]!r}")


def _scales(scale: float | Mapping[str, float]) -> float | dict[str, float]:
    """Always floats: 1 and 1.0 are the same scale and must be the same key."""
    return {name: float(value) for name, value in scale.items()} if isinstance(scale, Mapping) else float(scale)
