"""`load_pipeline`: from a source and some LoRAs to a diffusers pipeline that is ready to draw.

The wait for the daemon and the import of torch and diffusers overlap: acquiring starts on a thread, then the libraries
are imported. Base weights are shared in the process; every call returns a pipeline of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hotshelf.client import Client
from hotshelf.client import default as default_client
from hotshelf.pipelines import explanation
from hotshelf.pipelines.acquiring import Acquiring
from hotshelf.pipelines.explanation import explain
from hotshelf.pipelines.hardening import harden
from hotshelf.pipelines.loading import import_libraries, resolve_device
from hotshelf.pipelines.memory import PipelineCache, process_cache
from hotshelf.pipelines.order import PipelineOrder
from hotshelf_shared.errors import InvalidRequest
from hotshelf_shared.wire import Progress

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["PipelineCache", "explain", "load_pipeline"]

PROCESS = PipelineCache(max_pipelines=0)  # a mark for "the process-wide cache", never filled


def load_pipeline(
    source: str,
    *,
    loras: Iterable[str | Mapping[str, Any]] = (),
    device: Any = None,
    dtype: Any = None,
    attention: str = "auto",
    compile: bool | str = False,  # noqa: A002  the contract's word
    lora_mode: str = "adapters",
    snapshot: bool | str = "auto",
    allow_patterns: Any = None,
    ignore_patterns: Any = None,
    revision: str | None = None,
    variant: str | None = None,
    cache: PipelineCache | None = PROCESS,
    client: Client | None = None,
    timeout: float | None = 600,
    on_progress: Callable[[Progress], object] | None = None,
) -> DiffusionPipeline:
    """A diffusers pipeline from `source` (a source, a configured name or an absolute path) with `loras` applied.

    `loras` are paths, or ``{"path", "scale"}``; `device` and `dtype` are names (``"cuda"``, ``"float16"``) or torch's own;
    ``auto`` is a GPU where there is one, None the library's default. `attention` is ``auto`` (the fastest kernel that works
    here), ``flash`` or ``native``. `timeout` is in seconds, for everything up to files on disk. `explain(pipe)` says how it
    was made.
    """
    began = time.monotonic()
    _check_supported(compile=compile, lora_mode=lora_mode, snapshot=snapshot)
    order = PipelineOrder.of(
        source,
        loras=loras,
        device=device,
        dtype=dtype,
        attention=attention,
        allow_patterns=allow_patterns,
        ignore_patterns=ignore_patterns,
        revision=revision,
        variant=variant,
        timeout=timeout,
    )
    kept = process_cache() if cache is PROCESS else cache
    client = client or default_client
    wish = (order.wish, client)
    acquiring = Acquiring(client, order, on_progress, partial(kept.recall, wish, order) if kept is not None else _nothing)
    harden()
    import_s = import_libraries()
    order = replace(order, device=resolve_device(order.device))
    waited = time.monotonic()
    files = acquiring.result()
    waited = time.monotonic() - waited
    from hotshelf.pipelines.build import build

    built = build(order, files, kept)
    if kept is not None:
        kept.remember(wish, files)
    phases = {
        "acquire": files.seconds,
        **files.phases,
        "import": import_s,
        "wait": waited,
        **built.phases,
        "total": time.monotonic() - began,
    }
    explanation.record(order, files, built, phases)
    pipe: DiffusionPipeline = built.pipe
    return pipe


def _nothing() -> None:
    """What is remembered without a cache."""


def _check_supported(*, compile: bool | str, lora_mode: str, snapshot: bool | str) -> None:  # noqa: A002
    """What this version cannot do is refused, never ignored."""
    if compile is not False:
        raise InvalidRequest(f"compile={compile!r} is not in this version", hint="Use compile=False.")
    if lora_mode != "adapters":
        raise InvalidRequest(f"lora_mode={lora_mode!r} is not in this version", hint="Use lora_mode='adapters'.")
    if snapshot not in ("auto", False):
        raise InvalidRequest(f"snapshot={snapshot!r} is not in this version", hint="Use snapshot='auto'.")
