"""What is fetched: trees below an origin's root as `hotshelf push` leaves them, so that all fetch the same files."""

from __future__ import annotations

import json
import os
import pathlib
import random
from collections.abc import Mapping
from dataclasses import dataclass

from hotshelf_shared.digest import Digest
from hotshelf_shared.manifest import FileEntry, Manifest

MIB = 1 << 20
BUCKET = "weights"

#: Path → bytes of each file.
WORKLOADS: dict[str, dict[str, int]] = {
    "one": {"model.safetensors": 2048 * MIB},
    "flux": {
        **{f"transformer/model-{number}-of-5.safetensors": 512 * MIB for number in range(1, 6)},
        "vae/model.safetensors": 160 * MIB,
        "text_encoder/model.safetensors": 235 * MIB,
        **{f"part{number}/config.json": 2_000 + number for number in range(20)},
    },
    "loras": {f"lora-{number}.safetensors": 64 * MIB for number in range(32)},
    "small": {f"small-{number}.json": 32 << 10 for number in range(500)},
    "limited": {"model.safetensors": 1024 * MIB},
    "herd": {f"part-{number}.safetensors": 64 * MIB for number in range(3)},
}


@dataclass(frozen=True)
class Published:
    """`source` is what we are asked for; `sizes` are the objects that peers fetch, by key."""

    source: str
    sizes: Mapping[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


def publish(name: str, root: pathlib.Path) -> Published:
    """The workload below `root`/BUCKET/NAME. Bytes are the same each time, and no two files have the same."""
    folder = root / BUCKET / name
    entries, sizes = {}, {}
    for path, size in WORKLOADS[name].items():
        made = folder / "making"
        made.parent.mkdir(parents=True, exist_ok=True)
        _write(made, f"{name} {path}", size, is_json=path.endswith(".json"))
        with open(made, "rb") as file:
            digest = Digest.of_fd(file.fileno())
        key = f"{name}/blobs/sha256/{digest.hex}"
        (root / BUCKET / key).parent.mkdir(parents=True, exist_ok=True)
        made.rename(root / BUCKET / key)
        entries[path], sizes[key] = FileEntry(digest, size), size
    manifest = Manifest.of(entries)
    (folder / "manifests").mkdir()
    (folder / "manifests" / f"{manifest.revision.hex}.json").write_bytes(manifest.canonical())
    (folder / "hotshelf.json").write_text(json.dumps({"version": 1, "revision": str(manifest.revision)}))
    return Published(f"s3://{BUCKET}/{name}", sizes)


def _write(path: pathlib.Path, seed: str, size: int, *, is_json: bool) -> None:
    """A valid safetensors file of one tensor, or a JSON document, of exactly this size."""
    head = b'{"a": "' if is_json else _header(size)
    tail = b'"}' if is_json else b""
    left = size - len(head) - len(tail)
    chance = random.Random(seed)
    block = chance.randbytes(min(MIB, left))
    with open(path, "wb") as file:
        file.write(head)
        while left > 0:
            stamp = chance.randbytes(min(16, left))
            piece = stamp + block[: max(0, min(len(block), left) - len(stamp))]
            file.write(piece.hex().encode()[: len(piece)] if is_json else piece)
            left -= len(piece)
        file.write(tail)
        file.flush()
        os.fsync(file.fileno())


def _header(size: int) -> bytes:
    def head(count: int) -> bytes:
        body = json.dumps({"weight": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
        return len(body).to_bytes(8, "little") + body

    guess = head(size)
    return head(size - len(guess)) if len(head(size - len(guess))) == len(guess) else head(size - len(guess) + 1)
