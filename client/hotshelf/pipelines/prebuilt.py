"""A pipeline that somebody built and published is fetched instead of what it was built from.

Its key is made of digests, and those of pushed sources are known before a byte is read. So a node that has neither the
base nor the LoRAs asks what they stand for, and fetches the result alone. Nothing here imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hotshelf.client import Client
from hotshelf.pipelines import local, needs, recipes
from hotshelf.pipelines.files import ComponentFiles, Files, LoraFile, TreeFiles
from hotshelf.pipelines.order import PipelineOrder
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import HotshelfError
from hotshelf_shared.manifest import FileEntry
from hotshelf_shared.wire import Progress

NOWHERE = Path("/nonexistent")
RESOLVE_WAIT_S = 10.0


def find(
    client: Client,
    order: PipelineOrder,
    wishes: list[dict[str, Any]],
    deadline: float,
    on_progress: Callable[[Progress], object] | None,
) -> Files | None:
    """The built pipeline's files, held; None when it has to be built here, or is as well loaded from what is here already.

    `wishes` ask for the base, the components and the LoRAs, in this order, as far as they come from the shelf.
    """
    if not _is_worth_a_look(order):
        return None
    try:
        answers = client.resolve(wishes, timeout=min(RESOLVE_WAIT_S, max(0.05, deadline - time.monotonic())))
        if all(one["held"] for one in answers) or any(one["revision"] is None for one in answers):
            return None
        planned = _planned(order, iter(answers))
        wanted: list[Any] = [f"pipeline:{recipes.foundation(order, planned).key}"]
        wanted += [] if order.fuses else [{"source": lora.path} for lora in order.loras if not lora.path.startswith("/")]
        left_s = max(0.05, deadline - time.monotonic())
        snapshot, *others = client.acquire(wanted, timeout=left_s, on_progress=on_progress)
    except HotshelfError:
        return None  # then whatever is wrong is said by what is asked for next
    return _here(planned, TreeFiles.leased(snapshot), iter(others))


def _is_worth_a_look(order: PipelineOrder) -> bool:
    """Without one of these nothing is ever built that is worth more than its base."""
    dear = order.fuses or order.dtype is not None or order.quantization is not None
    afar = not order.source.startswith("/") and not any(one.source.startswith("/") for one in order.components)
    return dear and afar and order.snapshot is not False and order.config is None and order.device_map is None


def _planned(order: PipelineOrder, answers: Iterator[dict[str, Any]]) -> Files:
    """What all of it will be, by digests alone."""
    base = _tree(next(answers))
    components = []
    for one in order.components:
        tree = _tree(next(answers))
        files = tree.files if tree.single is not None else tree.below(one.subfolder)
        components.append(ComponentFiles(one, NOWHERE, files, tree.single))
    loras = []
    for lora in order.loras:
        if lora.path.startswith("/"):
            path, digest = local.lora_file(lora)
            loras.append(LoraFile(lora, path, digest))
        else:
            files = _tree(next(answers)).files
            loras.append(LoraFile(lora, NOWHERE, files[local.one_weight_file(lora.path, sorted(files))].digest))
    return Files(base, {}, tuple(loras), tuple(components))


def _tree(answer: dict[str, Any]) -> TreeFiles:
    files = {one["path"]: FileEntry(Digest.parse(one["digest"]), int(one["size"])) for one in answer["files"]}
    single = next(iter(files)) if answer["kind"] == "file" else None
    return TreeFiles(NOWHERE, files, Revision.parse(answer["revision"]), single=single)


def _here(planned: Files, snapshot: TreeFiles, leases: Iterator[Any]) -> Files:
    """The plan with the places where things are: everything but the adapters lies in the snapshot."""
    loras = []
    for lora in planned.loras:
        lease = None if lora.path is not NOWHERE else next(leases, None)
        if lora.path is not NOWHERE:
            loras.append(lora)
        elif lease is None:
            loras.append(replace(lora, path=snapshot.path))  # fused: its bytes are in the weights
        else:
            name = local.one_weight_file(lora.order.path, sorted(lease.files))
            loras.append(replace(lora, path=lease.path / name, lease=lease))
    return Files(
        base=replace(planned.base, path=snapshot.path, lease=snapshot.lease),
        index=needs.read_index(snapshot.path),
        loras=tuple(loras),
        components=tuple(replace(one, folder=snapshot.path / one.name, lease=snapshot.lease) for one in planned.components),
        snapshot=snapshot,
        is_prebuilt=True,
    )
