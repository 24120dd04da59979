"""What has a name: a source, which files of it, and how it is kept."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from hotshelf_daemon.config.values import Globs
from hotshelf_shared.errors import HotshelfError
from hotshelf_shared.patterns import Patterns
from hotshelf_shared.source import Source
from hotshelf_shared.truss import ModelCache
from hotshelf_shared.wire import Wish


class ModelSettings(BaseModel):
    """A name for a source; `freeze` keeps it at the revision it has until `refresh`.

    `view` pins it as well, because programs that hold no lease read it below hub/; None does for hf:// sources alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    source: str
    allow_patterns: Globs = None
    ignore_patterns: Globs = None
    pin: bool = False
    preload: bool = False
    freeze: bool = False
    view: bool | None = None

    @field_validator("source")
    @classmethod
    def _is_a_source(cls, value: str) -> str:
        try:
            Source.parse(value)
        except HotshelfError as error:
            raise ValueError(error.message) from error
        return value

    @property
    def is_viewed(self) -> bool:
        return Source.parse(self.source).kind == "hf" if self.view is None else self.view

    @property
    def wish(self) -> Wish:
        return Wish(Source.parse(self.source), Patterns.parse(self.allow_patterns, self.ignore_patterns))


def cached_models(cache: ModelCache) -> dict[str, ModelSettings]:
    """What Truss caches, by the names that it has here: there before anybody asks, and read by those who hold no lease."""
    return {
        one.name: ModelSettings(
            source=str(one.source),
            allow_patterns=None if one.patterns.allow is None else [*one.patterns.allow],
            ignore_patterns=[*one.patterns.ignore] or None,
            preload=True,
            view=True,
        )
        for one in cache.entries
    }


def take_model_cache(merged: dict[str, Any], where: dict[str, str]) -> ModelCache:
    """Of all layers, under whichever of its names. In `merged` only what is known of it stays, because all of that is shown."""
    if not {"model_cache", "hf_cache"} & merged.keys():
        return ModelCache()
    cache = ModelCache.of(merged)
    layer = where.pop("hf_cache", "")
    if merged.pop("hf_cache", None) is not None or layer:
        where.setdefault("model_cache", layer)
    merged["model_cache"] = [dict(entry) for entry in cache.given]
    return cache
