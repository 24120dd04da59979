"""The port on CUDA (and ROCm, which torch calls by the same name): a stream of its own, pinned memory, events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hotshelf.pipelines.lastmile.device import Mark

if TYPE_CHECKING:
    import torch


class Cuda:
    """Raises torch's RuntimeError where the driver does not work."""

    def __init__(self, device: str) -> None:
        import torch

        index = torch.device(device).index
        self._device = torch.device("cuda", torch.cuda.current_device() if index is None else index)
        self._stream = torch.cuda.Stream(self._device)
        torch.cuda.synchronize(self._device)  # what comes first with a device is no part of what is measured

    @property
    def name(self) -> str:
        return str(self._device)

    def host_bytes(self, size: int) -> torch.Tensor:
        import torch

        with torch.cuda.device(self._device):
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def room_for(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        import torch

        found = [torch.empty_like(tensor.detach(), device=self._device) for tensor in tensors]
        # What is given here may be freed memory, which work that was queued on the caller's stream still uses.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return found

    def copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        import torch

        with torch.cuda.stream(self._stream):
            to.copy_(source, non_blocking=True)

    def mark(self) -> Mark:
        import torch

        mark: Mark = torch.cuda.Event(blocking=True)  # who waits for it leaves the processor to who fills the next
        self._stream.record_event(mark)
        return mark

    def finish(self) -> None:
        self._stream.synchronize()

    def plainly(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        import torch

        copies = [tensor.detach().to(self._device) for tensor in tensors]
        torch.cuda.current_stream(self._device).synchronize()
        return copies
