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
from hotshelf_shared.wire import Progress

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["PipelineCache", "explain", "load_pipeline", "swap_lora"]

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
    components: Mapping[str, str | Mapping[str, str]] | None = None,
    config: str | None = None,
    pipeline_class: str | None = None,
    quantization_config: Any = None,
    device_map: str | None = None,
    offload: str | None = None,
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

    `loras` are paths, or ``{"path", "scale"}`` with a scale for all components or one each; `lora_mode` keeps them as
    ``adapters``, merges them (``fuse``), or leaves room to exchange them (``hotswap``, `swap_lora`). `components` replace
    the base's own, each a source or ``{"source", "subfolder"}``. A single-file checkpoint wants `config`, a folder that
    describes its kind. `device` and `dtype` are names (``"cuda"``, ``"float16"``) or torch's own; ``auto`` is a GPU where
    there is one, None the library's default. `attention` is ``auto`` (the fastest kernel that works here), ``flash`` or
    ``native``. `compile` is ``regional`` (the repeated blocks, by torch at the first call; True is the same), ``full`` (all
    of the denoiser) or ``aot`` (a package for each size of image; it draws plainly until there is one); what was compiled
    is kept for the next worker unless `snapshot` is False. `offload` is ``model``, ``sequential`` or ``group``. `snapshot`
    keeps what was dear to build for the next worker: in the background (``auto``), before returning (True) or never.
    `timeout` is in seconds, for everything up to files on disk. `explain(pipe)` says how it was made.
    """
    began = time.monotonic()
    order = PipelineOrder.of(
        source,
        loras=loras,
        device=device,
        dtype=dtype,
        attention=attention,
        compile=compile,
        lora_mode=lora_mode,
        snapshot=snapshot,
        components=components,
        config=config,
        pipeline_class=pipeline_class,
        quantization_config=quantization_config,
        device_map=device_map,
        offload=offload,
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
    from hotshelf.pipelines import compilation
    from hotshelf.pipelines.build import build
    from hotshelf.pipelines.gathering import gather
    from hotshelf.pipelines.keeping import Keeping
    from hotshelf.pipelines.loading import UnusableSnapshot

    keeping = Keeping(client, order, files)
    try:
        built = build(order, files, kept, keep_clean=keeping.wanted)
    except UnusableSnapshot:
        files = gather(client, replace(order, snapshot=False), on_progress)
        built = build(order, files, kept)
    if kept is not None:
        kept.remember(wish, files)
    compiled = compilation.apply(built.pipe, order, client, built.attention.backend)
    phases = {"acquire": files.seconds, **files.phases, "import": import_s, "wait": waited, **built.phases}
    keeping.keep(built)
    phases |= {"compile": compiled.body["seconds"], "total": time.monotonic() - began}
    explanation.record(order, files, built, phases, snapshot=keeping.report, compiled=compiled)
    pipe: DiffusionPipeline = built.pipe
    return pipe


def swap_lora(pipe: DiffusionPipeline, lora: str | Mapping[str, Any], *, position: int = 0, **options: Any) -> None:
    """Exchanges one LoRA of a pipeline made with ``lora_mode="hotswap"``, in place: a compiled pipeline stays compiled.

    `options` are `client` and `timeout`, as for `load_pipeline`. Raises InvalidRequest when it does not fit; the pipeline
    should then be loaded anew.
    """
    from hotshelf.pipelines import gathering, loras
    from hotshelf.pipelines.loading import constructing
    from hotshelf.pipelines.quiet import quietly

    explain(pipe)
    file = gathering.one_lora(options.get("client") or default_client, lora, options.get("timeout", 600))
    with constructing, quietly():
        loras.swap(pipe, file, position)
    explanation.swapped(pipe, position, file)


def _nothing() -> None:
    """What is remembered without a cache."""
