"""Files of this machine: read where they lie, their digests taken, never sent to the daemon."""

from __future__ import annotations

import os
from pathlib import Path

from hotshelf.pipelines import needs
from hotshelf.pipelines.files import TreeFiles
from hotshelf.pipelines.order import ComponentOrder, LoraOrder, PipelineOrder
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import InvalidRequest, NotFound
from hotshelf_shared.manifest import FileEntry
from hotshelf_shared.patterns import Patterns

_IN_PLACE = "An absolute path is read in the worker's own file system."
_hashed: dict[tuple[str, int, int, int], Digest] = {}


def base(order: PipelineOrder) -> TreeFiles:
    """The folder and what counts of it, or the one file. Raises NotFound, InvalidRequest, UnsafeContent."""
    root = Path(order.source)
    if root.is_file():
        found = _single(root)
    else:
        patterns = order.patterns
        if patterns is None:
            _check_folder(root)
            index = needs.read_index(root)
            patterns = needs.patterns(index, order.variant)
            if order.variant is not None:
                there = [path for path in _walk(root) if patterns.selects(path)]
                patterns = needs.patterns(index, order.variant, needs.lacking(index, there))
        found = tree(order.source, patterns)
    pin = order.revision
    if pin is not None and str(pin) != found.revision:
        raise InvalidRequest(
            f"{root} is revision {found.revision}, not {pin}",
            hint="A folder of this machine has the revision of what lies in it: leave `revision` out.",
        )
    return found


def tree(where: str, patterns: Patterns) -> TreeFiles:
    """A folder's files that the patterns select. Raises NotFound, InvalidRequest, UnsafeContent."""
    root = Path(where)
    _check_folder(root)
    chosen = [path for path in _walk(root) if patterns.selects(path)]
    needs.refuse_code(root, chosen)
    return TreeFiles.here(root, {path: entry(root / path) for path in chosen})


def component(order: ComponentOrder) -> TreeFiles:
    """Raises NotFound, UnsafeContent."""
    root = Path(order.source)
    return _single(root) if root.is_file() else tree(order.source, needs.component_patterns(order.subfolder))


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
    weights = [name for name in names if needs.is_weights(name)]
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


def _single(path: Path) -> TreeFiles:
    needs.check_weights_file(str(path))
    return TreeFiles.here(path.parent, {path.name: entry(path)}, single=path.name)


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise NotFound(f"{root} is no folder here", hint=_IN_PLACE)


def _walk(root: Path) -> list[str]:
    return sorted(str((Path(at) / name).relative_to(root)) for at, _, names in os.walk(root) for name in names)
