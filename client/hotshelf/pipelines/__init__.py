"""`load_pipeline`: from a source and some LoRAs to a diffusers pipeline that is ready to draw.

The wait for the daemon and the import of torch and diffusers overlap: acquiring starts on a thread, then the libraries
are imported. Base weights are shared in the process; every call returns a pipeline of its own.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hotshelf.client import Client
from hotshelf.client import default as default_client
from hotshelf.pipelines.files import Files, gather
from hotshelf.pipelines.hardening import harden
from hotshelf.pipelines.memory import PipelineCache, process_cache
from hotshelf.pipelines.order import PipelineOrder
from hotshelf_shared.errors import DaemonUnavailable, HotshelfError, InvalidRequest, Timeout
from hotshelf_shared.recipe import LoraRecipe, Recipe
from hotshelf_shared.wire import Progress

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["PipelineCache", "explain", "load_pipeline"]

PROCESS = PipelineCache(max_pipelines=0)  # a mark for "the process-wide cache", never filled
MEMORY_HIT_WAIT_S = 2.0

_explained: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
_last: dict[tuple[PipelineOrder, int], Files] = {}


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

    `loras` are paths, or ``{"path", "scale"}``; `device` and `dtype` are names (``"cuda"``, ``"float16"``) or torch's own,
    None for the library's default. `attention` is ``auto`` (the fastest kernel that works here), ``flash``, ``native``.
    `timeout` is in seconds, for everything up to files on disk. `explain(pipe)` says how it was made.
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
    getting = _Getting(client or default_client, order, on_progress, remembered=kept is not None)
    harden()
    import_s = _import_libraries()
    waited = time.monotonic()
    files = getting.result()
    waited = time.monotonic() - waited
    from hotshelf.pipelines.build import build

    try:
        built = build(order, files, kept)
    except BaseException:
        files.release()
        raise
    weakref.finalize(built.pipe, files.release).atexit = False
    phases = {"acquire": files.seconds, "import": import_s, "wait": waited, **built.phases, "total": time.monotonic() - began}
    recipe = Recipe(
        base=files.base.revision,
        loras=tuple(LoraRecipe(lora.digest, lora.order.scale) for lora in files.loras),
        dtype=built.dtype,
        variant=variant,
    )
    _explained[built.pipe] = {
        "source": source,
        "revision": files.base.revision,
        "pipeline_key": recipe.key,
        "loras": [{"path": lora.order.path, "digest": lora.digest, "scale": lora.order.scale} for lora in files.loras],
        "attention": built.attention.to_json(),
        "dtype": built.dtype,
        "device": built.device,
        "served_from": built.served_from,
        "phases": {name: round(seconds, 4) for name, seconds in phases.items()},
    }
    pipe: DiffusionPipeline = built.pipe
    return pipe


def explain(pipe: Any) -> dict[str, Any]:
    """How a pipeline that `load_pipeline` returned was made. Raises InvalidRequest for any other object."""
    try:
        return dict(_explained[pipe])
    except (KeyError, TypeError):
        raise InvalidRequest("this pipeline was not made by hotshelf.load_pipeline") from None


@dataclass(slots=True)
class _Outcome:
    files: Files | None = None
    error: BaseException | None = None


class _Getting:
    """`gather` on a thread of its own, begun at once."""

    def __init__(
        self, client: Client, order: PipelineOrder, on_progress: Callable[[Progress], object] | None, *, remembered: bool
    ) -> None:
        self._key = (replace(order, device=None, dtype=None, attention="auto"), id(client))
        self._known = _last.get(self._key) if remembered else None
        self._outcome = _Outcome()
        self._thread = threading.Thread(
            target=self._run, args=(client, order, on_progress), name="hotshelf-acquire", daemon=True
        )
        self._thread.start()

    def _run(self, client: Client, order: PipelineOrder, on_progress: Callable[[Progress], object] | None) -> None:
        try:
            self._outcome.files = self._gather(client, order, on_progress)
        except BaseException as error:
            self._outcome.error = error

    def _gather(self, client: Client, order: PipelineOrder, on_progress: Callable[[Progress], object] | None) -> Files:
        """What is in memory already is served without the daemon when that does not answer within a moment."""
        if self._known is not None:
            try:
                return gather(client, replace(order, timeout_s=min(order.timeout_s, MEMORY_HIT_WAIT_S)), on_progress)
            except DaemonUnavailable:
                return self._known
            except Timeout:
                pass  # it is there and at work: this is no hit any more
        return gather(client, order, on_progress)

    def result(self) -> Files:
        self._thread.join()
        if self._outcome.error is not None:
            raise self._outcome.error
        files = self._outcome.files
        if files is None:
            raise HotshelfError("acquiring ended without a result")
        _last[self._key] = files
        return files


def _import_libraries() -> float:
    """Seconds. Raises HotshelfError saying what to install."""
    began = time.monotonic()
    try:
        import diffusers
        import torch  # noqa: F401

        _ = diffusers.DiffusionPipeline  # lazily imported by diffusers: now, while files arrive, and not later
    except ImportError as error:
        raise HotshelfError(
            f"load_pipeline needs {error.name}", hint="pip install 'hotshelf[worker]' in the worker's environment."
        ) from error
    return time.monotonic() - began


def _check_supported(*, compile: bool | str, lora_mode: str, snapshot: bool | str) -> None:  # noqa: A002
    """What this version cannot do is refused, never ignored."""
    if compile is not False:
        raise InvalidRequest(f"compile={compile!r} is not in this version", hint="Use compile=False.")
    if lora_mode != "adapters":
        raise InvalidRequest(f"lora_mode={lora_mode!r} is not in this version", hint="Use lora_mode='adapters'.")
    if snapshot not in ("auto", False):
        raise InvalidRequest(f"snapshot={snapshot!r} is not in this version", hint="Use snapshot='auto'.")
