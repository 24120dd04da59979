"""Which files a pipeline needs, and where they are: leased from the shelf, or read in place for an absolute path.

Nothing here imports torch: it runs while torch is being imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hotshelf.client import Client
from hotshelf.lease import Lease
from hotshelf.pipelines import local, needs
from hotshelf.pipelines.order import LoraOrder, PipelineOrder
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import IntegrityError, InvalidRequest, NotFound, OriginUnavailable
from hotshelf_shared.manifest import FileEntry, Manifest
from hotshelf_shared.patterns import Patterns
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Progress

OnProgress = Callable[[Progress], object]


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """A pipeline's directory and exactly the files of it that count."""

    path: Path
    files: Mapping[str, FileEntry]
    revision: Revision
    lease: Lease | None = None

    def component(self, name: str) -> Digest:
        """The identity of one component: the revision of the files in its folder."""
        below = f"{name}/"
        return Manifest.of({path: entry for path, entry in self.files.items() if path.startswith(below)}).revision


@dataclass(frozen=True, slots=True)
class LoraFile:
    """One LoRA's weights on this machine."""

    order: LoraOrder
    path: Path
    digest: Digest
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """All that one pipeline is built from. A lease is freed when nothing that was made from these files is left."""

    base: BaseFiles
    index: Mapping[str, Any]
    loras: tuple[LoraFile, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @property
    def leases(self) -> tuple[Lease, ...]:
        held = (self.base.lease, *(lora.lease for lora in self.loras))
        return tuple(lease for lease in held if lease is not None)

    @property
    def base_leases(self) -> tuple[Lease, ...]:
        return () if self.base.lease is None else (self.base.lease,)

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
        """The same, holding nothing."""
        return replace(self, base=replace(self.base, lease=None), loras=tuple(replace(lora, lease=None) for lora in self.loras))


def gather(client: Client, order: PipelineOrder, on_progress: OnProgress | None) -> Files:
    """Everything on this machine, verified and held. Base and LoRAs are acquired all or nothing.

    Raises what `acquire` does, and InvalidRequest when the source is no diffusers pipeline.
    """
    asking = _Asking(client, time.monotonic() + order.timeout_s, on_progress)
    began = time.monotonic()
    at_home = _local_base(order) if order.source.startswith("/") else None
    afar = [{"source": lora.path} for lora in order.loras if not lora.path.startswith("/")]
    leases = asking.first_granted([afar] if at_home else [[wish, *afar] for wish in _base_wishes(asking, order)])
    try:
        granted = iter(leases)
        base = at_home or _leased_base(next(granted))
        loras = tuple(_local_lora(one) if one.path.startswith("/") else _leased_lora(one, next(granted)) for one in order.loras)
        return Files(base, needs.read_index(base.path), loras, time.monotonic() - began)
    except BaseException:
        for lease in leases:
            lease.release()
        raise


@dataclass(frozen=True, slots=True)
class _Asking:
    """Several requests to one daemon under one deadline."""

    client: Client
    deadline: float
    on_progress: OnProgress | None

    def acquire(self, wishes: list[dict[str, Any]]) -> list[Lease]:
        left_s = max(0.05, self.deadline - time.monotonic())
        return list(self.client.acquire(wishes, timeout=left_s, on_progress=self.on_progress)) if wishes else []

    def first_granted(self, ways: list[list[dict[str, Any]]]) -> list[Lease]:
        """A pinned revision says by itself whether it was taken this way: if not, the next."""
        for wishes in ways[:-1]:
            with suppress(IntegrityError):
                return self.acquire(wishes)
        return self.acquire(ways[-1])


def _base_wishes(asking: _Asking, order: PipelineOrder) -> list[dict[str, Any]]:
    """The base with the patterns given, or with those that its own model_index.json asks for.

    A revision is of exactly the files that it was taken of. A pinned one may be of what a pipeline needs, as `explain`
    says it, or of the whole source, as `acquire` does: then there are two ways to ask.
    """
    source = Source.parse(order.source)
    pin = order.revision or source.pinned
    unpinned = {"source": str(source.unpinned)}
    wish = unpinned if pin is None else {**unpinned, "revision": str(pin)}
    if order.patterns is not None:
        return [wish | _globs(order.patterns)]
    index_of = [[{**one, "allow_patterns": [needs.INDEX]}] for one in (wish, unpinned)[: 1 if pin is None else 2]]
    try:
        (first,) = asking.first_granted(index_of)
    except NotFound as error:
        if "patterns leave nothing" in error.message:
            raise needs.no_pipeline(order.source) from error
        raise
    except OriginUnavailable:
        return [wish]  # never asked for in part, perhaps, but held as a whole: preloaded, say
    with first:
        index = needs.read_index(first.path)
    patterns = needs.patterns(index, order.variant)
    if order.variant is not None:
        (found,) = asking.acquire([unpinned | _globs(patterns)])
        with found:
            patterns = needs.patterns(index, order.variant, needs.lacking(index, found.files))
    narrow = wish | _globs(patterns)
    return [narrow] if pin is None else [narrow, wish]


def _globs(patterns: Patterns) -> dict[str, Any]:
    allow = {} if patterns.allow is None else {"allow_patterns": list(patterns.allow)}
    return {**allow, "ignore_patterns": list(patterns.ignore)}


def _leased_base(lease: Lease) -> BaseFiles:
    return BaseFiles(lease.path, lease.files, lease.revision, lease)


def _leased_lora(order: LoraOrder, lease: Lease) -> LoraFile:
    name = local.one_weight_file(order.path, sorted(lease.files))
    return LoraFile(order, lease.path / name, lease.files[name].digest, lease)


def _local_base(order: PipelineOrder) -> BaseFiles:
    path, files = local.base_files(order)
    revision = Manifest.of(files).revision
    if order.revision not in (None, revision):
        raise InvalidRequest(
            f"{path} is revision {revision}, not {order.revision}",
            hint="A folder of this machine has the revision of what lies in it: leave `revision` out.",
        )
    return BaseFiles(path, files, revision)


def _local_lora(order: LoraOrder) -> LoraFile:
    return LoraFile(order, *local.lora_file(order))
