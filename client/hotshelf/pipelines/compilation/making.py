"""Makes a package in a process of its own: a line of JSON on standard input asks for it, one on standard output says what came
of that.

It has the denoiser's configuration and no weights: what it compiles over is random, so no weight can be part of the code. The
package is tried on other random weights before it is good. Whoever asked and is gone (end of input) wants nothing any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotshelf.pipelines import attention
from hotshelf.pipelines.compilation import calls, structure
from hotshelf.pipelines.compilation.package import MODEL, Package
from hotshelf.pipelines.hardening import harden
from hotshelf.pipelines.loading import first_line

if TYPE_CHECKING:
    import torch

_SPREAD = 0.05
#: How far apart native code and plain torch may be, of the largest value.
_TOLERANCE = {"float32": 1e-3, "float64": 1e-3, "bfloat16": 6e-2, "float16": 2e-2}
_SETTINGS = {
    "aot_inductor.package_constants_in_so": False,
    "always_keep_tensor_constants": True,  # else biases of up to eight numbers become part of the code
    "aot_inductor.use_runtime_constant_folding": False,
    "freezing": False,
}


def main() -> None:
    wish = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_asker, args=(wish["folder"],), daemon=True).start()
    harden()
    answer = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        try:
            why = make(wish)
        except Exception as error:
            why = f"{type(error).__name__}: {first_line(error)}"
    print(json.dumps({"why": why}), file=answer, flush=True)


def _end_with_the_asker(folder: str) -> None:
    sys.stdin.read()
    shutil.rmtree(folder, ignore_errors=True)
    if os.getpgrp() == os.getpid():  # a group of its own: its compilers, and nobody else
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def make(wish: Mapping[str, Any]) -> str | None:
    """Writes the package into `wish["folder"]`; why it could not be made, or None. Raises whatever torch does."""
    import torch

    module = _module(wish)
    if difference := _difference(wish["structure"], structure.lines(module)):
        return f"the denoiser is not what its configuration says: {difference}"

    def given(dtype: str, shape: tuple[int, ...], device: str) -> Any:
        kind = getattr(torch, dtype)
        return torch.randn(shape).to(device, kind) if kind.is_floating_point else torch.ones(shape, dtype=kind, device=device)

    keywords = calls.value_of(wish["call"], given)
    with torch.no_grad():
        exported = torch.export.export(module, args=(), kwargs=keywords, strict=False)
        path = Path(wish["folder"]) / MODEL
        torch._inductor.aoti_compile_and_package(exported, package_path=str(path), inductor_configs=_SETTINGS)
        if missing := _used(exported) - Package(path, module).names:
            return f"{min(missing)} has become part of its code"
        for tensor in structure.tensors_of(module).values():
            _randomise(tensor)
        return _misfit(module, Package(path, module), keywords)


def _used(exported: Any) -> set[str]:
    """The weights that the graph reads."""
    signature = exported.graph_signature
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return {weights[node.name] for node in exported.graph.nodes if node.name in weights and node.users}


def _module(wish: Mapping[str, Any]) -> torch.nn.Module:
    """As the configuration describes it, with random weights of the kinds that the pipeline's own have."""
    import diffusers
    import torch

    cls = getattr(diffusers, wish["class"])
    with torch.device("meta"):
        module: torch.nn.Module = cls.from_config(wish["config"])
    for path, part in module.named_modules():
        for own in (part._parameters, part._buffers):
            for key, was in own.items():
                if was is None:
                    continue
                dtype, stride, device = wish["tensors"][f"{path}.{key}" if path else key]
                tensor = torch.empty_strided(was.shape, stride, dtype=getattr(torch, dtype), device=device)
                _randomise(tensor)
                own[key] = torch.nn.Parameter(tensor, requires_grad=False) if own is part._parameters else tensor
    attention.apply(attention.Attention(wish["attention"], "asked for"), {"denoiser": module})
    return module.eval()


def _randomise(tensor: torch.Tensor) -> None:
    if tensor.is_floating_point():
        tensor.normal_(0.0, _SPREAD)
    else:
        tensor.zero_()


def _difference(wanted: list[str], found: list[str]) -> str | None:
    if wanted == found:
        return None
    first = next((pair for pair in zip(wanted, found, strict=False) if pair[0] != pair[1]), None)
    return first[0][:200] if first else f"{len(wanted)} parts, {len(found)} expected"


def _misfit(module: torch.nn.Module, package: Package, keywords: Mapping[str, Any]) -> str | None:
    """Whether native code draws what plain torch draws."""
    import torch

    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(keywords) if isinstance(leaf, torch.Tensor)]
    plain, native = module(**keywords), package.run(tensors)
    if not isinstance(plain, tuple) or len(plain) != len(native):
        return "the denoiser does not return a plain tuple"
    for one, other in zip(plain, native, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"it returns {tuple(other.shape)} {other.dtype}, and plain torch {tuple(one.shape)} {one.dtype}"
        apart = (one.double() - other.double()).abs().max().item()
        tolerance = _TOLERANCE.get(str(one.dtype).removeprefix("torch."), 1e-3) * max(one.double().abs().max().item(), 1e-3)
        if not apart <= tolerance:
            return f"it is {apart:.3g} away from plain torch"
    return None


if __name__ == "__main__":
    main()
