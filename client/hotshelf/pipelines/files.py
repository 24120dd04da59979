"""The files that one pipeline is built from: leased from the shelf, or read in place for an absolute path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from hotshelf.lease import Lease
from hotshelf.pipelines import needs
from hotshelf.pipelines.order import ComponentOrder, LoraOrder
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.manifest import FileEntry, Manifest


@dataclass(frozen=True, slots=True)
class TreeFiles:
    """A directory and exactly the files of it that count. `single` names the one file of a checkpoint that is no tree."""

    path: Path
    files: Mapping[str, FileEntry]
    revision: Revision
    lease: Lease | None = None
    single: str | None = None

    @classmethod
    def leased(cls, lease: Lease) -> Self:
        single = next(iter(lease.files)) if lease.kind == "file" else None
        return cls(lease.path, lease.files, lease.revision, lease, single)

    @classmethod
    def here(cls, path: Path, files: Mapping[str, FileEntry], single: str | None = None) -> Self:
        return cls(path, files, Manifest.of(files).revision, single=single)

    def below(self, folder: str) -> dict[str, FileEntry]:
        """The files of one folder, by their paths in it."""
        prefix = f"{folder}/" if folder else ""
        return {path[len(prefix) :]: entry for path, entry in self.files.items() if path.startswith(prefix)}

    def component(self, name: str, index: Mapping[str, Any]) -> Revision:
        """The identity of one component: the revision of the files in its folder, or folders."""
        near = ((path, entry) for path, entry in self.files.items() if path.startswith(name))
        return Manifest.of({path: entry for path, entry in near if needs.owner(index, path) == name}).revision


@dataclass(frozen=True, slots=True)
class LoraFile:
    """One LoRA's weights on this machine."""

    order: LoraOrder
    path: Path
    digest: Digest
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class ComponentFiles:
    """A component that is not the base's own. `folder` holds `files`."""

    order: ComponentOrder
    folder: Path
    files: Mapping[str, FileEntry]
    single: str | None = None
    lease: Lease | None = None

    @property
    def name(self) -> str:
        return self.order.name

    @property
    def revision(self) -> Revision:
        return Manifest.of(dict(self.files)).revision


@dataclass(frozen=True, slots=True)
class Files:
    """All that one pipeline is built from. A lease is freed when nothing that was made from these files is left.

    `config` is the folder that says what a single-file checkpoint is; `snapshot` a tree that somebody built already.
    `is_prebuilt` says that only the snapshot is here: what it was built from was never fetched.
    """

    base: TreeFiles
    index: Mapping[str, Any]
    loras: tuple[LoraFile, ...] = ()
    components: tuple[ComponentFiles, ...] = ()
    config: TreeFiles | None = None
    snapshot: TreeFiles | None = None
    is_prebuilt: bool = False
    seconds: float = field(default=0.0, compare=False)

    @property
    def description(self) -> TreeFiles:
        """Where model_index.json and every component's configuration lie."""
        return self.config or self.base

    @property
    def override_names(self) -> frozenset[str]:
        return frozenset(one.name for one in self.components)

    def paths(self) -> Iterator[Path]:
        """Everything that must still lie where it lay for these files to be of use."""
        yield self.base.path
        yield from (lora.path for lora in self.loras)
        yield from (one.folder for one in self.components)
        if self.config is not None:
            yield self.config.path

    @property
    def base_leases(self) -> tuple[Lease, ...]:
        """Those on what weights may be mapped from."""
        trees = (self.base, self.snapshot, *self.components)
        held = (tree.lease for tree in trees if tree is not None)
        return tuple(lease for lease in held if lease is not None)

    @property
    def leases(self) -> tuple[Lease, ...]:
        held = (one.lease for one in (self.config, *self.loras) if one is not None)
        return (*self.base_leases, *(lease for lease in held if lease is not None))

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of what the daemon did for them (fetch, verify, …); they were acquired together, so the longest counts."""
        seconds: dict[str, float] = {}
        for lease in self.leases:
            for name, took in lease.phases.items():
                seconds[name] = max(took, seconds.get(name, 0.0))
        return seconds

    @property
    def unleased(self) -> Files:
        """The same, holding nothing; without the snapshot, which is only good while it is held."""
        return replace(
            self,
            base=replace(self.base, lease=None),
            loras=tuple(replace(lora, lease=None) for lora in self.loras),
            components=tuple(replace(one, lease=None) for one in self.components),
            config=self.config and replace(self.config, lease=None),
            snapshot=None,
        )
