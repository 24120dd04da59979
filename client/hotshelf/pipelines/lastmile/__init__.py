"""The last mile: weights from main memory to a GPU, through a ring of pinned buffers where that is faster than `to`.

A pipeline is built in main memory, mapped from its files as far as nothing is cast. Its tensors' bytes are carried over, and
take the tensors' places; `pipe.to` then moves what is left. So whatever the ring cannot do, or fails at, is done plainly.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hotshelf.pipelines.lastmile import weights
from hotshelf.pipelines.lastmile.cuda import Cuda
from hotshelf.pipelines.lastmile.device import Device
from hotshelf.pipelines.lastmile.ring import Ring, slot_bytes
from hotshelf.pipelines.lastmile.ways import Choice, Ways
from hotshelf.pipelines.loading import first_line, is_out_of_memory
from hotshelf_shared import memory
from hotshelf_shared.errors import BadConfiguration, HotshelfError

if TYPE_CHECKING:
    import torch

__all__ = ["Copied", "carry", "place"]

SETTING = "HOTSHELF_LAST_MILE"
WISHES = ("auto", "plain", "ring")
PROCESS = Ways()


@dataclass(frozen=True, slots=True)
class Copied:
    """How `size` bytes came to the device, in `seconds`. With the way ``ring`` some of them may have gone plainly."""

    choice: Choice
    size: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {"way": self.choice.way, "why": self.choice.why, "bytes": self.size, "seconds": round(self.seconds, 4)}


def place(pipe: Any, device: str | None, *, environ: Mapping[str, str] = os.environ) -> Copied:
    """The pipeline's weights on `device`; None leaves them where they are.

    Raises HotshelfError when it cannot be there, torch's own error when it does not fit, BadConfiguration for a setting
    that is none.
    """
    wish = wished(environ)
    if device is None:
        return Copied(Choice("plain", "weights stay where they were read"))
    began = time.monotonic()
    try:
        copied = _carry(pipe, device, wish)
        pipe.to(device)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise HotshelfError(
            f"the pipeline does not fit on {device}: {first_line(error)}", hint="Free memory there, or load it in float16."
        ) from error
    return replace(copied, seconds=time.monotonic() - began) if copied.size else copied


def wished(environ: Mapping[str, str]) -> str:
    """``auto``, ``plain`` or ``ring``."""
    wish = environ.get(SETTING, "").strip().lower() or WISHES[0]
    if wish not in WISHES:
        raise BadConfiguration(f"{SETTING} is {wish[:80]!r}, which is none of {', '.join(WISHES)}", hint="Leave it out.")
    return wish


def _carry(pipe: Any, device: str, wish: str) -> Copied:
    kind = device.partition(":")[0]
    if kind == "cpu":
        return Copied(Choice("plain", "weights stay where they were read"))
    modules = weights.modules_of(pipe)
    if kind != "cuda":
        return Copied(Choice("plain", f"there is no ring for {kind}"), weights.host_bytes(modules))
    return carry(modules, lambda: Cuda(device), wish)


def carry(
    modules: Sequence[torch.nn.Module],
    device: Callable[[], Device],
    wish: str,
    *,
    ways: Ways = PROCESS,
    room: Callable[[int], float] = memory.room,
) -> Copied:
    """Puts copies on the device in the place of what can be carried, unless the plain way is the one; the rest is left.

    A tensor is on the device with all its bytes, or untouched. `device` is opened when it is needed. `room` tells how many
    bytes of memory are free beside so many that are to stay. Raises torch's OutOfMemoryError of the device: what does not
    fit this way fits no other; all else that goes wrong makes it plain, for the rest of the process unless `wish` is ``ring``.
    """
    size = weights.host_bytes(modules)
    if not size:
        return Copied(Choice("plain", "all weights were there"))
    if wish == "plain":
        return Copied(Choice("plain", f"{SETTING}=plain"), size)
    tensors = weights.portable(modules)
    journey, failed = _Journey(tensors, ways, wish), False
    try:
        choice = journey.go(device, room)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        choice = Choice("plain", f"the ring failed: {first_line(error)}")
        if journey.device is not None and wish != "ring":
            ways.keep(journey.device.name, choice)
        failed = True
    if failed:
        gc.collect()  # what the attempt took on the device hangs on its traceback, in a circle
    weights.assign(modules, journey.copies)
    return Copied(choice, size)


@dataclass(slots=True)
class _Journey:
    """`copies` are complete, by the `id` of what they are of."""

    tensors: list[torch.Tensor]
    ways: Ways
    wish: str
    device: Device | None = None
    copies: dict[int, torch.Tensor] = field(default_factory=dict)

    def go(self, device: Callable[[], Device], room: Callable[[int], float]) -> Choice:
        opened = self.device = device()
        known = Choice("ring", f"{SETTING}=ring") if self.wish == "ring" else self.ways.known(opened.name)
        if known is not None and known.way == "plain":
            return known
        parts = self.ways.parts(self.tensors) if known is None else []
        if parts is None:
            return Choice("plain", "too few bytes to tell which way is faster")
        total = sum(tensor.nbytes for tensor in self.tensors)
        if not (slot := slot_bytes(total, room(total))):
            return Choice("plain", "there is no memory to pin")
        ring = Ring(opened, slot)
        choice = known or self.ways.measure(self.tensors, parts, opened, ring, self._arrived)
        left = self.tensors[parts[-1].stop if parts else 0 :]
        if choice.way == "ring":
            self._arrived(left, ring.carry(left))
        return choice

    def _arrived(self, tensors: Sequence[torch.Tensor], copies: Sequence[torch.Tensor]) -> None:
        self.copies.update(zip(map(id, tensors), copies, strict=True))
