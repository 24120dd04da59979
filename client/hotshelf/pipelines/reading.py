"""How weights get out of their files: mapped; or, where a mapping's every page would be fetched over a network, otherwise.

diffusers reads its own models' files as a whole when it is told to (``disable_mmap``). It does not hand that on to the models
of transformers, nor do LoRAs have it: their files are read into the page cache first, by several threads, and then mapped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotshelf.pipelines import needs
from hotshelf.pipelines.files import ComponentFiles, Files
from hotshelf.warming import warm
from hotshelf_shared.mounts import file_system_of, is_network

MAPPED, WHOLE, AHEAD = "mapped", "whole", "ahead"


def way(library: str, kind: str) -> str:
    """How what `library` loads is read from a file system of that kind. Pure."""
    if not is_network(kind):
        return MAPPED
    return WHOLE if library == "diffusers" else AHEAD


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read for one pipeline: of each component that was not in memory, its file system and the way.

    `copied` says how weights went on from there to the device.

    Its methods are called before the component is loaded, say whether diffusers is not to map it, and read what must be read
    ahead. They raise AccessDenied or IntegrityError for a file that cannot be read.
    """

    how: dict[str, dict[str, Any]] = field(default_factory=dict)
    copied: dict[str, Any] = field(default_factory=dict)

    def tree(self, files: Files, given: Collection[str]) -> bool:
        """The pipeline snapshot or the base, without the components that are `given`."""
        tree = files.snapshot or files.base
        components = needs.components(files.index)
        if tree.single is not None and all(name in given or needs.is_weightless(cls) for name, (_, cls) in components.items()):
            return False  # nothing of the checkpoint is wanted
        weights: dict[str, dict[str, int]] = {}
        for path, entry in tree.files.items():
            name = path if tree.single is not None else needs.owner(files.index, path)
            if needs.is_weights(path) and name not in given:
                weights.setdefault(name, {})[str(tree.path / path)] = entry.size
        unnamed = ("diffusers" if tree.single is not None else "", "")
        ways = [self._prepare(name, components.get(name, unnamed)[0], sizes) for name, sizes in weights.items()]
        return WHOLE in ways

    def component(self, one: ComponentFiles, library: str) -> bool:
        """A component that is not the base's own."""
        sizes = {str(one.folder / path): entry.size for path, entry in one.files.items() if needs.is_weights(path)}
        return bool(sizes) and self._prepare(one.name, library, sizes) == WHOLE

    def _prepare(self, name: str, library: str, sizes: Mapping[str, int]) -> str:
        kind = file_system_of(next(iter(sizes)))
        chosen = way(library, kind)
        self.how[name] = {"file_system": kind, "way": chosen}
        if chosen == AHEAD:
            self.how[name]["ahead"] = warm(sizes).to_json()
        return chosen


def ahead(path: Path) -> None:
    """One file that is about to be mapped, a LoRA's."""
    if way("", file_system_of(path)) == AHEAD:
        warm({str(path): path.stat().st_size})
