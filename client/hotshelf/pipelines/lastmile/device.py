"""The port to a device that weights are carried to, and its twin in main memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Mark(Protocol):
    """A point in the sequence of copies."""

    def synchronize(self) -> None:
        """Waits until every copy that was begun before it is through. Any thread may."""


class Device(Protocol):
    """One thread at a time may call it. What it raises is torch's own, and ends the attempt.

    A copy reads its source at any time between its call and the next mark's being through: until then the source stays as
    it is. Copies are made in the order of their calls, and need not be complete before `finish`.
    """

    @property
    def name(self) -> str:
        """What a choice is remembered under."""

    def host_bytes(self, size: int) -> torch.Tensor:
        """So many bytes of main memory, uint8, from which copies are quick."""

    def room_for(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """A tensor on the device for each of them: same shape, dtype and strides, any content."""

    def copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        """Begins to copy bytes of `host_bytes` into as many bytes of what `room_for` gave."""

    def mark(self) -> Mark:
        """The point after the copies so far."""

    def finish(self) -> None:
        """Waits until every copy is through; what went wrong with one may be raised only here."""

    def plainly(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copies of tensors in main memory, by torch's own `to`; complete when it returns."""


@dataclass(frozen=True, slots=True)
class _TwinMark:
    twin: Twin
    copies: int

    def synchronize(self) -> None:
        self.twin.make(self.copies)


class Twin:
    """Main memory as a device. Its copies are made as `late` as the port allows, when somebody waits for them, or at once.

    So whoever changes a source too early, or uses a copy too early, gets wrong bytes every time, and not now and then.
    """

    def __init__(self, *, late: bool = True, name: str = "twin") -> None:
        self._late, self._name = late, name
        self._begun: deque[tuple[torch.Tensor, torch.Tensor]] = deque()
        self._counted = self._made = 0
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self._name

    def host_bytes(self, size: int) -> torch.Tensor:
        import torch

        return torch.empty(size, dtype=torch.uint8)

    def room_for(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        import torch

        return [torch.empty_like(tensor.detach()) for tensor in tensors]

    def copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        self._begun.append((to, source))
        self._counted += 1
        if not self._late:
            self.make(self._counted)

    def mark(self) -> Mark:
        return _TwinMark(self, self._counted)

    def finish(self) -> None:
        self.make(self._counted)

    def plainly(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [tensor.detach().clone() for tensor in tensors]

    def make(self, copies: int) -> None:
        """The first so many since the beginning, as far as they are not made yet."""
        with self._lock:
            while self._made < copies:
                to, source = self._begun.popleft()
                self._made += 1
                to.copy_(source)
