"""A ring of pinned buffers between main memory and a device: threads fill slots while earlier ones are being copied.

Tensors are bytes here, one after another: small ones share a slot, large ones take several. A slot is filled anew only when
the mark behind its copies is through. What is filled may be mapped from files: then filling is what reads them.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshelf.pipelines.lastmile.device import Device, Mark

if TYPE_CHECKING:
    import torch

SLOTS = 8
MOST_SLOT_BYTES = 32 << 20
LEAST_SLOT_BYTES = 1 << 20
#: Of the memory that is free beside the weights.
SHARE = 1 / 4
#: Pieces begin at such places of a slot.
ALIGNED = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """`size` bytes of the tensor of that number, from `start`, which lie in the slot from `at`."""

    tensor: int
    start: int
    size: int
    at: int


def slot_bytes(total: int, room: float) -> int:
    """How large a slot is to be for `total` bytes of weights; 0 where there is no room for a ring. Pure."""
    most = min(MOST_SLOT_BYTES, max(LEAST_SLOT_BYTES, total // SLOTS), room * SHARE / SLOTS)
    return 0 if most < LEAST_SLOT_BYTES else 1 << int(most).bit_length() - 1  # torch rounds pinned memory up to powers of two


def loads(sizes: Sequence[int], slot: int) -> Iterator[list[Piece]]:
    """What goes into one slot after another, for tensors of these sizes in bytes. Pure."""
    load, at = list[Piece](), 0
    for number, size in enumerate(sizes):
        start = 0
        while start < size:
            if at >= slot:
                yield load
                load, at = [], 0
            piece = Piece(number, start, min(size - start, slot - at), at)
            load.append(piece)
            start += piece.size
            at = -(-(at + piece.size) // ALIGNED) * ALIGNED
    if load:
        yield load


@dataclass(slots=True)
class _Slot:
    memory: torch.Tensor
    #: Behind the copies from it.
    mark: Mark | None = None


@dataclass(frozen=True, slots=True)
class _Filling:
    slot: _Slot
    load: list[Piece]
    end: Future[None]


class Ring:
    """`slots` buffers of `size` bytes, taken from the device at once. Raises what the device raises."""

    def __init__(self, device: Device, size: int, *, slots: int = SLOTS) -> None:
        self._device, self._size = device, size
        self._slots = [_Slot(device.host_bytes(size)) for _ in range(slots)]

    def carry(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Their copies on the device, complete. Each is dense, whatever its strides.

        Raises what the device raises; then nothing is under way any more, and the ring may be used again.
        """
        copies = self._device.room_for(tensors)
        sources, targets = [bytes_of(one) for one in tensors], [bytes_of(one) for one in copies]
        filling: deque[_Filling] = deque()
        processors = os.cpu_count() or 1
        threads = ThreadPoolExecutor(min(len(self._slots), processors), thread_name_prefix="hotshelf-lastmile")
        try:
            for load, slot in zip(loads([one.nbytes for one in sources], self._size), itertools.cycle(self._slots)):
                if len(filling) == len(self._slots):
                    self._send(filling.popleft(), targets)
                filling.append(_Filling(slot, load, threads.submit(_fill, slot, load, sources)))
            while filling:
                self._send(filling.popleft(), targets)
        finally:
            threads.shutdown(cancel_futures=True)
            self._device.finish()
        return copies

    def _send(self, filling: _Filling, targets: Sequence[torch.Tensor]) -> None:
        filling.end.result()
        slot = filling.slot
        for one in filling.load:
            target = targets[one.tensor][one.start : one.start + one.size]
            self._device.copy(target, slot.memory[one.at : one.at + one.size])
        slot.mark = self._device.mark()


def _fill(slot: _Slot, load: Sequence[Piece], sources: Sequence[torch.Tensor]) -> None:
    if slot.mark is not None:
        slot.mark.synchronize()
    for one in load:
        # Without Python's lock, and on this thread alone: torch's own copies have a team of threads each.
        ctypes.memmove(slot.memory.data_ptr() + one.at, sources[one.tensor].data_ptr() + one.start, one.size)


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a dense tensor as uint8, in the order in which it lies there, whatever the dtype."""
    import torch

    tensor = tensor.detach()
    begin, size = tensor.storage_offset() * tensor.element_size(), tensor.numel() * tensor.element_size()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage(), begin, (size,))
