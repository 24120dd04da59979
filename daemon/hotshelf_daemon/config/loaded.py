"""What the layers came to: the settings, and where each value came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import yaml
from pydantic import BaseModel, SecretStr

from hotshelf_daemon.config.settings import Settings


@dataclass(frozen=True, slots=True)
class Row:
    """One value as `config show` prints it; secrets are masked."""

    key: str
    value: str
    where: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, for every dotted key the layer it came from, and the file's path and text if there is one.

    `warnings` say what was left out of it.
    """

    settings: Settings
    where: Mapping[str, str]
    path: str | None = None
    text: str | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def says_something(self) -> bool:
        """Whether the file sets anything."""
        return any(layer.startswith("file ") for layer in self.where.values())

    def rows(self) -> list[tuple[str, str, str]]:
        return [(r.key, r.value, r.where) for r in self._rows("", self.settings)]

    def _rows(self, at: str, value: object) -> Iterator[Row]:
        if isinstance(value, BaseModel):
            for name in type(value).model_fields:
                yield from self._rows(f"{at}.{name}".lstrip("."), getattr(value, name))
        elif isinstance(value, dict) and value:
            for name, inner in value.items():
                yield from self._rows(f"{at}.{name}", inner)
        else:
            shown = "********" if isinstance(value, SecretStr) else _plain(value)
            yield Row(at, shown, self._where(at))

    def _where(self, key: str) -> str:
        while key:
            if key in self.where:
                return self.where[key]
            key = key.rpartition(".")[0]
        return "default"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).replace("\n...", "").strip()
