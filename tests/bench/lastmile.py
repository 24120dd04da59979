"""How quickly weights get from the page cache to a GPU: by torch's own `to`, through the ring, and by pinned copies alone.

    python -m tests.bench.lastmile [--gib N] [--rounds N] [--device cuda:0] [--folder DIR]

Interleaved rounds; each maps the file anew, as a load does. Pinned copies alone are the machine's limit. Prints medians, and
those of the ratios round by round. Without a GPU it says so, and measures on the twin what the ring itself costs.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from hotshelf.pipelines.lastmile.cuda import Cuda
from hotshelf.pipelines.lastmile.device import Device, Twin
from hotshelf.pipelines.lastmile.ring import MOST_SLOT_BYTES, SLOTS, Ring, bytes_of, slot_bytes
from hotshelf_shared import memory

LARGE, SMALL = 64 << 20, 4 << 10


def write(path: pathlib.Path, size: int) -> None:
    """Weights as a transformer has them: matrices, and a few small vectors for each."""
    import torch
    from safetensors.torch import save_file

    count = max(1, size // LARGE)
    tensors = {f"{number}.weight": torch.full((LARGE // 2,), number, dtype=torch.float16) for number in range(count)}
    tensors |= {
        f"{number}.{one}.bias": torch.ones(SMALL // 2, dtype=torch.float16) for number in range(count) for one in range(4)
    }
    save_file(tensors, path)


def mapped(path: pathlib.Path) -> list[Any]:
    from safetensors.torch import load_file

    return sorted(load_file(path).values(), key=lambda tensor: int(tensor.data_ptr()))


def check(copies: list[Any], path: pathlib.Path) -> None:
    if any(not bytes_of(one.cpu()).equal(bytes_of(other)) for one, other in zip(copies, mapped(path), strict=True)):
        raise SystemExit("copies are not what the file holds")


class Limit:
    """Copies out of one buffer, again and again, with nothing filled into it."""

    def __init__(self, device: Device) -> None:
        import torch

        self._device, self._host = device, device.host_bytes(MOST_SLOT_BYTES)
        (self._there,) = device.room_for([torch.empty(MOST_SLOT_BYTES, dtype=torch.uint8)])

    def copy(self, tensors: list[Any]) -> list[Any]:
        for _ in range(sum(one.nbytes for one in tensors) // MOST_SLOT_BYTES):
            self._device.copy(self._there, self._host)
        self._device.finish()
        return tensors


def measure(device: Device, path: pathlib.Path, rounds: int) -> dict[str, list[float]]:
    total = sum(tensor.nbytes for tensor in mapped(path))
    slot = slot_bytes(total, memory.room(total))
    if not slot:
        raise SystemExit("there is no memory for a ring")
    ways: dict[str, Callable[[list[Any]], list[Any]]] = {
        "plain": device.plainly,
        "ring": Ring(device, slot).carry,
        "limit": Limit(device).copy,
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():  # caches and allocators are warm then
        check(way(mapped(path)), path)
    for _ in range(rounds):
        for name, way in ways.items():
            tensors = mapped(path)
            began = time.perf_counter()
            way(tensors)
            rates[name].append(total / (time.perf_counter() - began))
    return rates


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(prog="tests.bench.lastmile", description=__doc__)
    parser.add_argument("--gib", type=float, help="how much (4, or a quarter without a GPU)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", help="where the file is written, on what weights are read from")
    given = parser.parse_args()
    there = torch.cuda.is_available()
    device: Device = Cuda(given.device) if there else Twin(late=False)
    if there:
        print(f"{torch.cuda.get_device_name(given.device)}, torch {torch.__version__}, {SLOTS} slots")
    else:
        print("THERE IS NO GPU HERE: nothing is said of one. Main memory to main memory, where the ring copies twice:")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = pathlib.Path(folder) / "weights.safetensors"
        write(path, int((given.gib or (4 if there else 0.25)) * (1 << 30)))
        rates = measure(device, path, given.rounds)
    for name, found in rates.items():
        print(f"{name:6} {statistics.median(found) / 1e9:6.2f} GB/s  ({min(found) / 1e9:.2f} to {max(found) / 1e9:.2f})")
    for name in ("plain", "limit"):
        ratio = statistics.median(ours / other for ours, other in zip(rates["ring"], rates[name], strict=True))
        print(f"ring / {name}: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
