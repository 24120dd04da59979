"""Which way is the faster to a device: found out once in a process, on the first weights that are enough for it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hotshelf.pipelines.lastmile.device import Device
from hotshelf.pipelines.lastmile.ring import Ring

if TYPE_CHECKING:
    import torch

Way = Literal["plain", "ring"]
#: Told of tensors and their copies, which are complete.
Arrived = Callable[[Sequence["torch.Tensor"], Sequence["torch.Tensor"]], None]
#: One after the other, so that what changes meanwhile (pages that are not cached yet, other work) meets both.
TURNS: tuple[Way, ...] = ("plain", "ring", "plain", "ring")
SAMPLE_BYTES = 128 << 20
#: How much faster the ring must be: it takes memory and processors, which `to` does not.
MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class Choice:
    """A way, and why it."""

    way: Way
    why: str


def faster(plain: Sequence[float], ring: Sequence[float]) -> Choice:
    """From bytes a second, each way's best counts: what else the machine does makes slower, never faster. Pure."""
    why = f"plain {max(plain) / 1e9:.3g} GB/s, ring {max(ring) / 1e9:.3g} GB/s"
    return Choice("ring" if max(ring) > max(plain) * MARGIN else "plain", why)


def samples(sizes: Sequence[int], least: int) -> list[slice] | None:
    """For each turn as many of the first tensors as make `least` bytes; None where there are too few. Pure."""
    ends, total = [0], 0
    for number, size in enumerate(sizes, 1):
        total += size
        if total >= least:
            ends.append(number)
            total = 0
        if len(ends) > len(TURNS):
            return [slice(begin, end) for begin, end in itertools.pairwise(ends)]
    return None


@dataclass(slots=True)
class Ways:
    """What a process knows of its devices, by their names. `now` is in seconds."""

    sample_bytes: int = SAMPLE_BYTES
    now: Callable[[], float] = time.perf_counter
    _known: dict[str, Choice] = field(default_factory=dict)

    def known(self, device: str) -> Choice | None:
        return self._known.get(device)

    def keep(self, device: str, choice: Choice) -> None:
        self._known[device] = choice

    def parts(self, tensors: Sequence[torch.Tensor]) -> list[slice] | None:
        """What each turn of `measure` is to carry; None where it is too little to tell."""
        return samples([tensor.nbytes for tensor in tensors], self.sample_bytes)

    def measure(
        self, tensors: Sequence[torch.Tensor], parts: Sequence[slice], device: Device, ring: Ring, arrived: Arrived
    ) -> Choice:
        """Carries the first tensors by turns, and keeps which way was the faster."""
        rates: dict[Way, list[float]] = {"plain": [], "ring": []}
        for way, part in zip(TURNS, parts, strict=True):
            some = tensors[part]
            began = self.now()
            copies = ring.carry(some) if way == "ring" else device.plainly(some)
            rates[way].append(sum(one.nbytes for one in some) / max(self.now() - began, 1e-9))
            arrived(some, copies)
        choice = faster(rates["plain"], rates["ring"])
        self.keep(device.name, choice)
        return choice
