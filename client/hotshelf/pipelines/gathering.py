"""Everything that one pipeline is built from onto this machine: which files are needed, and held together.

Nothing here imports torch: it runs while torch is being imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hotshelf.client import Client
from hotshelf.lease import Lease
from hotshelf.pipelines import local, needs, prebuilt, recipes
from hotshelf.pipelines.files import ComponentFiles, Files, LoraFile, TreeFiles
from hotshelf.pipelines.order import ComponentOrder, LoraOrder, PipelineOrder
from hotshelf_shared.errors import HotshelfError, IntegrityError, InvalidRequest, NotFound, OriginUnavailable
from hotshelf_shared.patterns import Patterns
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Progress

OnProgress = Callable[[Progress], object]
Wishes = list[dict[str, Any]]
#: Asking for a pipeline snapshot must never delay the building that it is to spare.
SNAPSHOT_WAIT_S = 60.0


def gather(client: Client, order: PipelineOrder, on_progress: OnProgress | None) -> Files:
    """Everything on this machine, verified and held. Base, components and LoRAs are acquired all or nothing.

    Raises what `acquire` does, and InvalidRequest when the source is no diffusers pipeline.
    """
    asking = _Asking(client, time.monotonic() + order.timeout_s, on_progress)
    began = time.monotonic()
    ways = [[*wishes, *_other_wishes(order)] for wishes in _base_wishes(asking, order)]
    if (files := prebuilt.find(client, order, ways[0], asking.deadline, on_progress)) is not None:
        return replace(files, seconds=time.monotonic() - began)
    leases = asking.first_granted(ways)
    try:
        granted = iter(leases)
        base = local.base(order) if _is_local(order.source) else TreeFiles.leased(next(granted))
        config = _config(order, granted)
        components = tuple(_component(one, granted) for one in order.components)
        loras = tuple(_lora(one, granted) for one in order.loras)
        needs.check_config(order.source, base.single, order.config)
        files = Files(base, needs.read_index((config or base).path), loras, components, config)
        files = replace(files, snapshot=_snapshot(asking, order, files))
        return replace(files, seconds=time.monotonic() - began)
    except BaseException:
        for lease in leases:
            lease.release()
        raise


def one_lora(client: Client, lora: object, timeout: float | None) -> LoraFile:
    """A LoRA by itself, held."""
    order = LoraOrder.parse(lora)
    if _is_local(order.path):
        return _lora(order, iter(()))
    return _lora(order, iter([client.acquire(order.path, timeout=timeout)]))


class _Asking:
    def __init__(self, client: Client, deadline: float, on_progress: OnProgress | None) -> None:
        self.client, self.deadline, self.on_progress = client, deadline, on_progress

    def acquire(self, wishes: Wishes) -> list[Lease]:
        left_s = max(0.05, self.deadline - time.monotonic())
        return list(self.client.acquire(wishes, timeout=left_s, on_progress=self.on_progress)) if wishes else []

    def first_granted(self, ways: list[Wishes]) -> list[Lease]:
        """A pinned revision says by itself whether it was taken this way: if not, the next."""
        for wishes in ways[:-1]:
            with suppress(IntegrityError):
                return self.acquire(wishes)
        return self.acquire(ways[-1])


def _is_local(where: str) -> bool:
    return where.startswith("/")


def _base_wishes(asking: _Asking, order: PipelineOrder) -> list[Wishes]:
    """The ways to ask for the base: with the patterns given, or with those that its own model_index.json asks for.

    A revision is of exactly the files that it was taken of. A pinned one may be of what a pipeline needs, as `explain`
    says it, or of the whole source, as `acquire` does: then there are two ways to ask.
    """
    if _is_local(order.source):
        return [[]]
    source = Source.parse(order.source)
    pin = order.revision or source.pinned
    unpinned = {"source": str(source.unpinned)}
    wish = unpinned if pin is None else {**unpinned, "revision": str(pin)}
    if source.kind == "pipeline" and order.patterns is None:
        return [[wish]]  # built of what is needed, and nothing else
    if order.patterns is not None or order.config is not None or needs.is_weights(source.path):
        return [[wish | _globs(order.patterns)]]
    index_of = [[{**one, "allow_patterns": [needs.INDEX]}] for one in (wish, unpinned)[: 1 if pin is None else 2]]
    try:
        (first,) = asking.first_granted(index_of)
    except NotFound as error:
        if "patterns leave nothing" in error.message:
            raise needs.no_pipeline(order.source) from error
        raise
    except OriginUnavailable:
        return [[wish]]  # never asked for in part, perhaps, but held as a whole: preloaded, say
    with first:
        index = needs.read_index(first.path)
    patterns = needs.patterns(index, order.variant)
    if order.variant is not None:
        (found,) = asking.acquire([unpinned | _globs(patterns)])
        with found:
            patterns = needs.patterns(index, order.variant, needs.lacking(index, found.files))
    narrow = wish | _globs(patterns)
    return [[narrow]] if pin is None else [[narrow], [wish]]


def _other_wishes(order: PipelineOrder) -> Wishes:
    """What is asked for together with the base: in the order in which `gather` takes the leases."""
    wishes: Wishes = []
    if order.config is not None and not _is_local(order.config):
        wishes.append({"source": order.config} | _globs(needs.CONFIGURATION))
    wishes += [
        {"source": one.source} | ({} if needs.is_weights(one.source) else _globs(needs.component_patterns(one.subfolder)))
        for one in order.components
        if not _is_local(one.source)
    ]
    return wishes + [{"source": lora.path} for lora in order.loras if not _is_local(lora.path)]


def _globs(patterns: Patterns | None) -> dict[str, Any]:
    globs: dict[str, Any] = {} if patterns is None else {"ignore_patterns": list(patterns.ignore)}
    return globs if patterns is None or patterns.allow is None else globs | {"allow_patterns": list(patterns.allow)}


def _config(order: PipelineOrder, granted: Any) -> TreeFiles | None:
    if order.config is None:
        return None
    return local.tree(order.config, needs.CONFIGURATION) if _is_local(order.config) else TreeFiles.leased(next(granted))


def _component(order: ComponentOrder, granted: Any) -> ComponentFiles:
    tree = local.component(order) if _is_local(order.source) else TreeFiles.leased(next(granted))
    if tree.single is not None:
        return ComponentFiles(order, tree.path, tree.files, tree.single, tree.lease)
    files = tree.below(order.subfolder)
    if not files:
        raise InvalidRequest(f"{order.source} has no folder {order.subfolder!r}", hint="See its files: `hotshelf show SOURCE`.")
    return ComponentFiles(order, tree.path / order.subfolder, files, None, tree.lease)


def _lora(order: LoraOrder, granted: Any) -> LoraFile:
    if _is_local(order.path):
        path, digest = local.lora_file(order)
        return LoraFile(order, path, digest)
    lease = next(granted)
    name = local.one_weight_file(order.path, sorted(lease.files))
    return LoraFile(order, lease.path / name, lease.files[name].digest, lease)


def _snapshot(asking: _Asking, order: PipelineOrder, files: Files) -> TreeFiles | None:
    """What somebody built from this very recipe already. None is never an error: then it is built here."""
    if order.snapshot is False or files.base.lease is None:
        return None
    source = f"pipeline:{recipes.foundation(order, files).key}"
    left_s = min(SNAPSHOT_WAIT_S, max(0.05, asking.deadline - time.monotonic()))
    try:
        found = TreeFiles.leased(asking.client.acquire(source, timeout=left_s, on_progress=asking.on_progress))
    except HotshelfError:
        return None
    return found
