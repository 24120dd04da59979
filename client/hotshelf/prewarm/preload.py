"""What the zygote imports: the libraries, and what a first `load_pipeline` would import of them. No tensor is touched."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterable

from hotshelf_shared.errors import BadConfiguration

#: Modules, and names that the libraries import lazily: the common kinds of pipeline, which take the rest with them.
_OURS = ("pipelines.build", "pipelines.gathering", "pipelines.keeping", "pipelines.loras", "pipelines.memory", "client", "unix")
_STANDARD = ("argparse", "http.server", "json", "logging", "multiprocessing", "concurrent.futures", "uuid", "hashlib")
_LAZY = {
    "transformers": ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPTokenizer", "T5EncoderModel", "T5TokenizerFast"),
    "diffusers": (
        *("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"),
        *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "UniPCMultistepScheduler"),
        *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "EDMEulerScheduler", "HeunDiscreteScheduler"),
        *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler"),
        *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
    ),
}
_OPTIONAL = ("diffusers.guiders", "peft", "accelerate", "safetensors.torch", "PIL.Image", "PIL.PngImagePlugin")


def preload(more: Iterable[str]) -> None:
    """Raises HotshelfError when torch or diffusers is missing, BadConfiguration when one of `more` cannot be imported."""
    for name in (*_STANDARD, *(f"hotshelf.{one}" for one in _OURS)):
        importlib.import_module(name)
    from hotshelf.pipelines.loading import import_libraries
    from hotshelf.pipelines.quiet import importing_quietly

    import_libraries()
    with importing_quietly():
        for library, names in _LAZY.items():
            for name in names:
                with contextlib.suppress(Exception):  # another version has it elsewhere: then the worker imports it
                    getattr(importlib.import_module(library), name)
        for name in _OPTIONAL:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    also(more)


def also(names: Iterable[str]) -> None:
    """What an operator names. Raises BadConfiguration."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise BadConfiguration(
                f"--preload {name}: {type(error).__name__}: {error}", hint="Name modules that can be imported here."
            ) from error


def settle() -> None:
    """Ends the threads that end before a fork, OpenBLAS's; raises BadConfiguration when what was imported cannot be forked."""
    child = os.fork()
    if child == 0:
        os._exit(int(_is_cuda_lost()))
    _, status = os.waitpid(child, 0)
    if (count := threads()) > 1:
        raise BadConfiguration(
            f"what was imported has started {count - 1} threads, which no forked worker would have",
            hint="Leave that module out of --preload.",
        )
    torch = sys.modules.get("torch")
    if status or (torch is not None and torch.cuda.is_initialized()):
        raise BadConfiguration(
            "what was imported has initialized CUDA, which no forked worker could use", hint="Leave it out of --preload."
        )


def _is_cuda_lost() -> bool:
    """In a child: whether its parent has started CUDA, be it only by asking how many GPUs there are."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda._is_in_bad_fork())


def threads() -> int:
    """Of this process, Python's and others'."""
    return len(os.listdir("/proc/self/task"))


def loaded() -> dict[str, str | None]:
    """The top-level modules that are imported, with their files."""
    tops = {name: module for name, module in list(sys.modules.items()) if "." not in name and name != "__main__"}
    return {name: getattr(module, "__file__", None) for name, module in tops.items()}
