"""Which files a pipeline needs, and where they are: leased from the shelf, or read in place for an absolute path.

Nothing here imports torch: it runs while torch is being imported.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotshelf.client import Client
from hotshelf.lease import Lease
from hotshelf.pipelines.order import LoraOrder, PipelineOrder
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import InvalidRequest, NotFound
from hotshelf_shared.manifest import FileEntry, Manifest
from hotshelf_shared.wire import Progress

INDEX = "model_index.json"
WEIGHT_ENDINGS = (".safetensors", ".sft")


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """A pipeline's directory and exactly the files of it that count."""

    path: Path
    files: Mapping[str, FileEntry]
    lease: Lease | None = None

    @property
    def revision(self) -> Digest:
        return Manifest.of(self.files).revision if self.lease is None else self.lease.revision

    def component(self, name: str) -> Digest:
        """The identity of one component: the revision of the files in its folder."""
        below = f"{name}/"
        return Manifest.of({path: entry for path, entry in self.files.items() if path.startswith(below)}).revision

    def index(self) -> dict[str, Any]:
        return read_index(self.path)


@dataclass(frozen=True, slots=True)
class LoraFile:
    """One LoRA's weights on this machine."""

    order: LoraOrder
    path: Path
    digest: Digest
    lease: Lease | None = None


@dataclass(slots=True)
class Files:
    """All that one pipeline is built from."""

    base: BaseFiles
    loras: list[LoraFile] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def leases(self) -> list[Lease]:
        held = [self.base.lease, *(lora.lease for lora in self.loras)]
        return [lease for lease in held if lease is not None]

    def release(self) -> None:
        for lease in self.leases:
            lease.release()


def gather(client: Client, order: PipelineOrder, on_progress: Callable[[Progress], object] | None) -> Files:
    """Everything on this machine, verified and held. Base and LoRAs are acquired all or nothing.

    Raises what `acquire` does, and InvalidRequest when the source is no diffusers pipeline.
    """
    began = time.monotonic()
    deadline = began + order.timeout_s
    wanted: list[dict[str, Any]] = []
    local = order.source.startswith("/")
    if not local:
        wanted.append(_base_wish(client, order, deadline))
    wanted += [{"source": lora.path} for lora in order.loras if not lora.path.startswith("/")]
    left = max(0.05, deadline - time.monotonic())
    leases = list(client.acquire(wanted, timeout=left, on_progress=on_progress)) if wanted else []
    try:
        base = _local_base(order) if local else BaseFiles(leases[0].path, leases[0].files, leases[0])
        remote = iter(leases if local else leases[1:])
        loras = [_local_lora(lora) if lora.path.startswith("/") else _leased_lora(lora, next(remote)) for lora in order.loras]
        read_index(base.path)
    except BaseException:
        for lease in leases:
            lease.release()
        raise
    return Files(base, loras, time.monotonic() - began)


def _base_wish(client: Client, order: PipelineOrder, deadline: float) -> dict[str, Any]:
    """The base with the patterns given, or with those that its own model_index.json asks for."""
    wish: dict[str, Any] = {"source": order.source}
    if order.revision is not None:
        wish["revision"] = order.revision
    if order.patterns is not None:
        if order.patterns.allow is not None:
            wish["allow_patterns"] = list(order.patterns.allow)
        return {**wish, "ignore_patterns": list(order.patterns.ignore)}
    try:
        first = client.acquire({**wish, "allow_patterns": [INDEX]}, timeout=max(0.05, deadline - time.monotonic()))
    except NotFound as error:
        if "patterns leave nothing" in error.message:
            raise _no_pipeline(order.source) from error
        raise
    with first:
        index = read_index(first.path)
    return {**wish, **needed(index, order.variant)}


def needed(index: Mapping[str, Any], variant: str | None) -> dict[str, list[str]]:
    """The patterns of what `from_pretrained` will read: the index and each component's folder, one variant's weights.

    Other formats, other variants and whatever else lies in the repository stay where they are.
    """
    folders = [name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None]
    ignore = ["*.bin", "*.msgpack", "*.h5", "*.onnx", "*.onnx_data", "*.xml", "*.ot", "*.ckpt", "*.pt", "*.pth"]
    if variant is None:
        ignore += [f"*.{other}.safetensors" for other in ("fp16", "bf16", "fp32", "non_ema")]
        ignore += [f"*.{other}-*.safetensors" for other in ("fp16", "bf16", "fp32", "non_ema")]
    return {"allow_patterns": [INDEX, *(f"{name}/*" for name in sorted(folders))], "ignore_patterns": ignore}


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json`. Raises InvalidRequest when the folder is no diffusers pipeline."""
    try:
        body = json.loads((folder / INDEX).read_bytes())
    except FileNotFoundError:
        raise _no_pipeline(str(folder)) from None
    except ValueError as error:
        raise InvalidRequest(f"{folder / INDEX} is not JSON: {error}", hint="Save the pipeline again.") from error
    if not isinstance(body, dict) or not isinstance(body.get("_class_name"), str):
        raise InvalidRequest(f"{folder / INDEX} names no pipeline class", hint="Save the pipeline with save_pretrained.")
    return body


def _no_pipeline(where: str) -> InvalidRequest:
    return InvalidRequest(
        f"{where} has no {INDEX}: it is no diffusers pipeline",
        hint="Name the folder that save_pretrained wrote; a single-file checkpoint is not one.",
    )


# ---- files of this machine, never sent to the daemon

_hashed: dict[tuple[str, int, int, int], Digest] = {}


def _local_base(order: PipelineOrder) -> BaseFiles:
    root = Path(order.source)
    if not root.is_dir():
        raise NotFound(f"{root} is no folder here", hint="An absolute path is read in the worker's own file system.")
    patterns = order.patterns
    if patterns is None:
        from hotshelf_shared.patterns import Patterns

        given = needed(read_index(root), order.variant)
        patterns = Patterns.parse(given["allow_patterns"], given["ignore_patterns"])
    found = (Path(at) / name for at, _, names in os.walk(root) for name in names)
    paths = {str(path.relative_to(root)): path for path in found}
    return BaseFiles(root, {name: _entry(path) for name, path in sorted(paths.items()) if patterns.selects(name)})


def _local_lora(order: LoraOrder) -> LoraFile:
    path = Path(order.path)
    if not path.is_file():
        raise NotFound(f"the LoRA {path} is no file here", hint="An absolute path is read in the worker's own file system.")
    return LoraFile(order, path, _entry(path).digest)


def _leased_lora(order: LoraOrder, lease: Lease) -> LoraFile:
    """The one weight file of what was leased: an object, or a folder that holds one."""
    weights = [name for name in lease.files if name.endswith(WEIGHT_ENDINGS)]
    if len(weights) != 1:
        raise InvalidRequest(
            f"the LoRA {order.path} has {len(weights)} weight files: {', '.join(weights[:5]) or 'no .safetensors at all'}",
            hint="Name the one .safetensors object itself.",
        )
    return LoraFile(order, lease.path / weights[0], lease.files[weights[0]].digest, lease)


def _entry(path: Path) -> FileEntry:
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
