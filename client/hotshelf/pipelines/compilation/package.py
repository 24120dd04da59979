"""A denoiser as native code without weights (AOTInductor): loaded in milliseconds, run over a pipeline's own parameters.

Invariant: it never runs over weights that are not the module's own at this very moment.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotshelf.pipelines.compilation.structure import tensors_of
from hotshelf.pipelines.loading import first_line
from hotshelf_shared.errors import HotshelfError, IntegrityError

if TYPE_CHECKING:
    import torch

MODEL = "denoiser.pt2"
#: What code for a GPU takes for granted of an address.
_ALIGNMENT = 16


class Package:
    """Over the weights of `module`, whose structure is the one that the package was made for. Raises IntegrityError."""

    def __init__(self, path: Path, module: torch.nn.Module) -> None:
        import torch

        device = next(iter(tensors_of(module).values())).device
        index = -1 if device.type == "cpu" else device.index or 0
        try:
            self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, index)
            names = self._loader.get_constant_fqns()
        except Exception as error:
            raise IntegrityError(f"the package cannot be loaded: {first_line(error)}", hint="It is made anew.") from error
        self._is_on_cpu = device.type == "cpu"
        self._lock = threading.Lock()
        self._homes = _homes(module)
        if unknown := set(names) - self._homes.keys():
            raise IntegrityError(f"the package wants {min(unknown)}, which the denoiser does not have")
        self.names = frozenset(names)
        self._bound: list[tuple[dict[str, Any], str, Any, int]] = []
        self._held: list[Any] = []

    def run(self, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What the module's forward would return. Raises HotshelfError when its weights are no longer of their kind."""
        with self._lock:
            if not self._bound or any(
                tensor.data_ptr() != at or home.get(name) is not tensor for home, name, tensor, at in self._bound
            ):
                self._bind()
            return tuple(self._loader.run([self._given(one) for one in tensors]))

    def _given(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach().contiguous()
        return tensor if self._is_on_cpu or not tensor.data_ptr() % _ALIGNMENT else tensor.clone()

    def _bind(self) -> None:
        bound, given = [], {}
        for name in self.names:
            home, key, kind = self._homes[name]
            tensor = home.get(key)
            if tensor is None or _kind(tensor) != kind:
                raise HotshelfError(f"its {name} is not what it was when it was loaded")
            if not self._is_on_cpu and tensor.data_ptr() % _ALIGNMENT:
                raise HotshelfError(f"its {name} lies at an odd address")
            bound.append((home, key, tensor, tensor.data_ptr()))
            given[name] = tensor.detach()  # keeps alive what native code reads
        self._loader.load_constants(given, False, True, True)
        self._bound, self._held = bound, list(given.values())


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (type(tensor).__name__ in ("Tensor", "Parameter"), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)


def _homes(module: torch.nn.Module) -> dict[str, tuple[dict[str, Any], str, tuple[Any, ...]]]:
    """Of every weight the dictionary that it is in, its key there, and what it is."""
    found = {}
    for path, part in module.named_modules(remove_duplicate=False):
        both: tuple[dict[str, Any], dict[str, Any]] = (part._parameters, part._buffers)
        for own in both:
            for key, tensor in own.items():
                if tensor is not None:
                    found[f"{path}.{key}" if path else key] = (own, key, _kind(tensor))
    return found
