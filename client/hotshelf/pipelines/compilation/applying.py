"""From an order and a pipeline to one that runs compiled: what can run here, what the shelf has of it, what is kept.

The pipeline's modules are its own, and only they are told: the weights in memory stay as they are, for everybody.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hotshelf import compiling
from hotshelf.client import Client
from hotshelf.pipelines.background import background
from hotshelf.pipelines.compilation import choice, structure
from hotshelf.pipelines.compilation.calls import Form, anywhere
from hotshelf.pipelines.compilation.forward import AheadOfTime, JustInTime, Place
from hotshelf.pipelines.compilation.report import Report
from hotshelf.pipelines.compilation.workshop import LOOK_S, Item, State, Wish, workshop
from hotshelf.pipelines.loading import first_line
from hotshelf.pipelines.order import PipelineOrder
from hotshelf_shared.bundle import BundleName
from hotshelf_shared.errors import HotshelfError

#: Raised when a package or a bundle of an older hotshelf must not be used any more.
FORMAT = 1
_HAND_IN_S = 600.0
_LIBRARIES = ("torch", "diffusers", "peft")


@dataclass(eq=False, slots=True)
class Compilation:
    """Of one pipeline. `keep` hands in what torch has compiled; what is made ahead does so by itself.

    `fresh` are the bundles that the shelf had not, each of one way of calling a denoiser.
    """

    client: Client
    report: Report
    places: list[Place] = field(default_factory=list)
    fresh: list[BundleName] = field(default_factory=list)
    keeps: bool = True

    def compiled(self, name: BundleName) -> None:
        """After a call that compiled something: the next worker shall not."""
        if name not in self.fresh:
            self.fresh.append(name)
            if self.keeps:
                self.report.body["kept"] = "saving"
                background.submit(functools.partial(self.keep, name))

    def keep(self, name: BundleName) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="hotshelf-bundle-") as scratch:
                folder = Path(scratch) / "cache"
                compiling.gather(folder, compiling.places())
                outcome = compiling.keep(self.client, name, folder, timeout=_HAND_IN_S).outcome
            self.report.body["kept"] = "known" if outcome is compiling.Outcome.OTHER else "saved"
        except (HotshelfError, OSError) as error:
            self.report.body["kept"] = "failed"
            self.report.fell_back(f"what was compiled was not kept: {first_line(error)}")

    def leave(self) -> None:
        for place in self.places:
            place.leave()


_of: weakref.WeakKeyDictionary[Any, Compilation] = weakref.WeakKeyDictionary()


def of(pipe: Any) -> Compilation | None:
    """The compilation of a pipeline that was loaded with `compile`."""
    return _of.get(pipe)


def apply(pipe: Any, order: PipelineOrder, client: Client, attention: str) -> Report:
    """Makes the pipeline's denoisers run compiled, as far as that can be; never an error, always said."""
    if order.compile is None:
        return Report(None, "eager")
    denoisers = choice.denoisers(pipe)
    chosen = choice.choose(order, {name: choice.look(module) for name, module in denoisers.items()})
    report = Report(order.compile, chosen.runs, chosen.why)
    if chosen.runs == "eager":
        return report
    began = time.monotonic()
    found = Compilation(client, report, keeps=order.snapshot is not False)
    try:
        graph = _Graph(compiling.environment_key(), chosen.runs, attention, order.lora_mode, order.quantization)
        if chosen.runs == "aot":
            found.places = [_ahead(module, graph, found) for module in denoisers.values()]
        else:
            found.places = [_just_in_time(module, graph, found) for module in denoisers.values()]
    except Exception as error:  # whatever a compiler dies of: the pipeline draws without it
        for part in (part for module in denoisers.values() for part in module.modules()):
            part._compiled_call_impl = None
        report.body["runs"] = "eager"
        report.fell_back(f"it cannot be compiled here: {first_line(error)}")
        return report
    for place in found.places:
        place.install()
    report.took(time.monotonic() - began)
    _of[pipe] = found
    weakref.finalize(pipe, found.leave).atexit = False
    return report


@dataclass(frozen=True, slots=True)
class _Graph:
    """What of an order makes another graph of the same modules, and the machine that compiles it."""

    environment: str
    runs: str
    attention: str
    lora_mode: str
    quantization: str | None

    def of_call(self, class_name: str, digest: str, form: Form | None) -> BundleName:
        """Of one way of calling a denoiser whose structure has that digest."""
        parts = {
            "format": FORMAT, "mode": self.runs, "attention": self.attention, "lora_mode": self.lora_mode,
            "quantization": self.quantization, "structure": digest, **versions(),
            "call": None if form is None else json.dumps(anywhere(form)),
        }  # fmt: skip
        return BundleName.of(self.environment, compiling.graph_key(f"{class_name}-{self.runs}", parts))

    def of_package(self, purpose: Mapping[str, Any]) -> BundleName:
        parts = {key: one if isinstance(one, str | int) else json.dumps(one) for key, one in purpose.items()}
        return BundleName.of(self.environment, compiling.graph_key(f"{purpose['class']}-aot", parts))


# ---- as torch compiles, at the first call


def _bring(client: Client, name: BundleName, report: Report) -> bool:
    """The bundle into inductor's directories, before anything is compiled; whether there is one."""
    try:
        with tempfile.TemporaryDirectory(prefix="hotshelf-bundle-") as scratch:
            folder = Path(scratch) / "cache"
            if compiling.fetch(client, name, folder, timeout=LOOK_S) is not None:
                compiling.merge(folder, compiling.places())
                report.body["bundle"] = str(name)
                return True
    except (HotshelfError, OSError) as error:
        report.fell_back(f"compiled without a bundle: {first_line(error)}")
    return False


def _just_in_time(module: Any, graph: _Graph, found: Compilation) -> Place:
    """Never for shapes in general (`dynamic`): what torch makes of a second size depends on the first, and so would bundles."""
    import torch

    class_name = type(module).__name__
    digest = f"{structure.digest(structure.lines(module))} {structure.config_digest(module)}"

    def bring(form: Form | None) -> tuple[BundleName, bool]:
        name = graph.of_call(class_name, digest, form)
        return name, _bring(found.client, name, found.report)

    if graph.runs == "regional":
        module.compile_repeated_blocks(dynamic=False)
    whole = torch.compile(module._call_impl, dynamic=False) if graph.runs == "full" else None
    return JustInTime(module, found.report, whole, bring, found.compiled)


# ---- ahead of time


def _ahead(module: Any, graph: _Graph, found: Compilation) -> Place:
    lines, tensors = structure.lines(module), structure.tensors_of(module)
    device, weight_bytes = next(iter(tensors.values())).device, sum(one.nbytes for one in tensors.values())
    making = {
        "class": type(module).__name__,
        "config": json.loads(module.to_json_string()),
        "attention": graph.attention,
        "structure": lines,
        "tensors": {
            name: [str(one.dtype).removeprefix("torch."), list(one.stride()), device.type] for name, one in tensors.items()
        },
    }
    common = {
        "format": FORMAT, "class": type(module).__name__, "structure": structure.digest(lines),
        "attention": graph.attention, "config": structure.config_digest(module), **versions(),
    }  # fmt: skip
    del tensors  # the closure must not keep weights

    def look(form: Form) -> Item:
        call = json.loads(json.dumps(anywhere(form)))
        purpose = {**common, "call": call}
        wish = Wish(graph.of_package(purpose), purpose, {**making, "call": call})
        item = workshop.find(found.client, wish)
        if item.state is State.READY:
            found.report.body["bundle"] = str(wish.name)
        elif item.state is State.ABSENT and (why := choice.no_room(device, weight_bytes)):
            item.why = why
        else:
            workshop.make(found.client, wish, keep=found.keeps)
        return item

    return AheadOfTime(module, found.report, look, workshop.discard, made_for=structure.digest(lines))


@functools.cache
def versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found
