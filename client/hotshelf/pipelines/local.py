"""Files of this machine: read where they lie, their digests taken, never sent to the daemon."""

from __future__ import annotations

import os
from pathlib import Path

from hotshelf.pipelines import needs
from hotshelf.pipelines.order import LoraOrder, PipelineOrder
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import InvalidRequest, NotFound
from hotshelf_shared.manifest import FileEntry

_IN_PLACE = "An absolute path is read in the worker's own file system."
_hashed: dict[tuple[str, int, int, int], Digest] = {}


def base_files(order: PipelineOrder) -> tuple[Path, dict[str, FileEntry]]:
    """The folder and what counts of it. Raises NotFound, InvalidRequest, UnsafeContent."""
    root = Path(order.source)
    if not root.is_dir():
        raise NotFound(f"{root} is no folder here", hint=_IN_PLACE)
    found = sorted(str((Path(at) / name).relative_to(root)) for at, _, names in os.walk(root) for name in names)
    patterns = order.patterns
    if patterns is None:
        index = needs.read_index(root)
        patterns = needs.patterns(index, order.variant)
        if order.variant is not None:
            there = [path for path in found if patterns.selects(path)]
            patterns = needs.patterns(index, order.variant, needs.lacking(index, there))
    chosen = [path for path in found if patterns.selects(path)]
    needs.refuse_code(root, chosen)
    return root, {path: entry(root / path) for path in chosen}


def lora_file(order: LoraOrder) -> tuple[Path, Digest]:
    """The weight file: `order.path` itself, or the one that the folder holds. Raises NotFound, InvalidRequest."""
    path = Path(order.path)
    if path.is_dir():
        path = path / one_weight_file(order.path, sorted(name for name in os.listdir(path)))
    if not path.is_file():
        raise NotFound(f"the LoRA {path} is no file here", hint=_IN_PLACE)
    return path, entry(path).digest


def one_weight_file(lora: str, names: list[str]) -> str:
    """Raises InvalidRequest unless exactly one of a LoRA's files holds weights."""
    weights = [name for name in names if name.endswith(needs.WEIGHT_ENDINGS)]
    if len(weights) != 1:
        raise InvalidRequest(
            f"the LoRA {lora} has {len(weights)} weight files: {', '.join(weights[:5]) or 'no .safetensors at all'}",
            hint="Name the one .safetensors file itself.",
        )
    return weights[0]


def entry(path: Path) -> FileEntry:
    """Its digest, taken once for as long as the file stays as it is."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        seen = os.fstat(fd)
        key = (str(path), seen.st_ino, seen.st_mtime_ns, seen.st_size)
        if key not in _hashed:
            _hashed[key] = Digest.of_fd(fd)
        return FileEntry(_hashed[key], seen.st_size)
    finally:
        os.close(fd)
