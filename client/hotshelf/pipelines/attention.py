"""Which attention kernel: the fastest that works on this device and dtype, found out by one tiny forward each.

A kernel that is absent, or refuses this GPU, is never an exception: it is a reason in `explain`.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

log = logging.getLogger("hotshelf")
#: The candidates in the order in which they are tried: diffusers' name, and the package each needs.
_CANDIDATES = (
    ("_flash_3", "flash_attn_interface"),
    ("flash", "flash_attn"),
    ("_native_flash", None),
    ("_native_efficient", None),
)


@dataclass(frozen=True, slots=True)
class Attention:
    """`backend` is diffusers' name of it; `refused` says of each faster one why it was not taken."""

    backend: str
    why: str
    refused: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"backend": self.backend, "why": self.why, "refused": dict(self.refused)}


@functools.lru_cache(maxsize=32)
def choose(wanted: str, device: str, dtype: str) -> Attention:
    """The kernel for this device and dtype. `wanted` is auto, flash (falls back too), native or none."""
    if wanted in ("native", "none"):
        return Attention("native", "asked for")
    refused: list[tuple[str, str]] = []
    for backend, package in _CANDIDATES:
        why_not = _refusal(backend, package, device, dtype)
        if why_not is None:
            return Attention(backend, "probed: one forward on this device and dtype", tuple(refused))
        refused.append((backend, why_not))
    chosen = Attention("native", "torch's scaled_dot_product_attention always works", tuple(refused))
    log.info("attention %s on %s %s: %s", chosen.backend, device, dtype, "; ".join(": ".join(pair) for pair in refused))
    return chosen


def _refusal(backend: str, package: str | None, device: str, dtype: str) -> str | None:
    """Why this kernel will not do; None when a tiny forward through it works."""
    if not device.startswith("cuda"):
        return f"needs a CUDA device, this is {device}"
    if package is not None and importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if dtype == "float32":
        return "takes float16 and bfloat16 only"
    try:
        _probe(backend, device, dtype)
    except Exception as error:  # whatever a kernel dies of, it is a reason not to take it
        return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no message'}"
    return None


def _probe(backend: str, device: str, dtype: str) -> None:
    import torch
    from diffusers.models import attention_dispatch as dispatch

    name = dispatch.AttentionBackendName(backend)
    dispatch._check_attention_backend_requirements(name)
    query = torch.zeros(1, 16, 2, 64, device=device, dtype=getattr(torch, dtype))
    with torch.inference_mode():
        dispatch.dispatch_attention_fn(query, query, query, backend=name)
    torch.cuda.synchronize(device)


def apply(attention: Attention, modules: dict[str, torch.nn.Module]) -> None:
    """Sets it on every component that can be told. `native` is what diffusers does by itself and needs no telling.

    Telling one component makes diffusers prefer that kernel in the whole process: undone, since another pipeline may be
    on a device or in a dtype that it does not take.
    """
    if attention.backend == "native":
        return
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry

    before, _ = registry.get_active_backend()
    try:
        for module in modules.values():
            tell = getattr(module, "set_attention_backend", None)
            if tell is not None:
                tell(attention.backend)
    finally:
        registry.set_active_backend(before)
