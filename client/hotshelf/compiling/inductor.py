"""Inductor: where its cache is, and how much compiling a cache saved this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

#: What a bundle calls the directories that it holds.
INDUCTOR, TRITON = "inductor", "triton"


@dataclass(frozen=True, slots=True)
class Reuse:
    """Graphs that this process took from a cache, had to compile, or that could not be cached: inductor's and autograd's."""

    hits: int = 0
    misses: int = 0
    bypasses: int = 0
    autograd_hits: int = 0
    autograd_misses: int = 0
    autograd_bypasses: int = 0

    def since(self, before: Reuse) -> Reuse:
        return Reuse(*(getattr(self, field.name) - getattr(before, field.name) for field in fields(self)))


def counters() -> Reuse:
    """Since this process began, or since somebody cleared torch's counters. Imports nothing."""
    module = sys.modules.get("torch._dynamo.utils")
    found: Mapping[str, Mapping[str, int]] = module.counters if module is not None else {}
    graphs, autograd = found.get("inductor", {}), found.get("aot_autograd", {})
    return Reuse(
        hits=graphs.get("fxgraph_cache_hit", 0),
        misses=graphs.get("fxgraph_cache_miss", 0),
        bypasses=graphs.get("fxgraph_cache_bypass", 0),
        autograd_hits=autograd.get("autograd_cache_hit", 0),
        autograd_misses=autograd.get("autograd_cache_miss", 0),
        autograd_bypasses=autograd.get("autograd_cache_bypass", 0),
    )


def folder() -> Path:
    """Its directory, which need not be there yet: `TORCHINDUCTOR_CACHE_DIR`, else where torch puts it."""
    if named := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return Path(os.path.abspath(named))
    from torch._inductor.runtime import cache_dir_utils

    return Path(cache_dir_utils.default_cache_dir())


def places() -> dict[str, Path]:
    """The directories of a compile cache by the names they have in a bundle. Triton's is within inductor's unless told."""
    found = {INDUCTOR: folder()}
    if (named := os.environ.get("TRITON_CACHE_DIR")) and not Path(os.path.abspath(named)).is_relative_to(found[INDUCTOR]):
        found[TRITON] = Path(os.path.abspath(named))
    return found
