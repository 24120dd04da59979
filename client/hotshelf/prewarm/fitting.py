"""Decides whether a child of the zygote would be what a process started in the worker's place would be. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hotshelf.prewarm.footing import Footing

#: What the interpreter, the loader and the libraries read once, when they start or are imported.
_READ_ONCE = (
    *("PYTHON", "LD_", "LC_", "GLIBC_", "MALLOC_", "COVERAGE_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_", "OPENBLAS_", "GOTO_", "BLIS_", "NUMEXPR_", "NPY_", "NUMPY_"),
    *("PYTORCH_", "TORCH", "ATEN_", "C10_", "TRITON_", "CUDA_", "CUBLAS_", "CUDNN_", "NCCL_", "NVIDIA_", "HIP_", "ROC", "HSA_"),
    *("HF_", "HUGGING", "TRANSFORMERS_", "DIFFUSERS_", "ACCELERATE_", "PEFT_", "SAFETENSORS_", "TOKENIZERS_", "FLASH_"),
    *("XFORMERS_", "BITSANDBYTES_", "BNB_", "USE_", "TQDM_", "KINETO_"),
)
_READ_ONCE_NAMES = frozenset(
    ("LANG", "LANGUAGE", "HOME", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
)
#: Read when CUDA is initialized, which the zygote never does: another worker may have another GPU.
_READ_LATER = frozenset(("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"))


def fits(zygote: Footing, worker: Footing) -> str | None:
    """None when it fits, else what differs, without its value: a clause for a person."""
    for name in sorted(zygote.circumstances.keys() | worker.circumstances.keys()):
        if zygote.circumstances.get(name) != worker.circumstances.get(name):
            return f"{name} differ" if name.endswith("s") else f"{name} differs"
    return environment_fits(zygote.environment, worker.environment)


def environment_fits(zygote: Mapping[str, str], worker: Mapping[str, str]) -> str | None:
    """None, or the variable that was read when the zygote started and is another now."""
    for name in sorted(zygote.keys() | worker.keys()):
        if is_read_once(name) and zygote.get(name) != worker.get(name):
            return f"the variable {name} differs"
    return None


def is_read_once(name: str) -> bool:
    if name in _READ_LATER:
        return False
    return name in _READ_ONCE_NAMES or name.startswith(_READ_ONCE)


def shadowed(names: Iterable[str], loaded: Mapping[str, str | None], folder: str) -> str | None:
    """The module that a fresh process would take from its program's `folder`, and the zygote has from elsewhere.

    `names` is what lies in that folder; `loaded` are the zygote's top-level modules with the files they came from.
    """
    for name in sorted(names):
        module, dot, kind = name.partition(".")
        if module not in loaded or (dot and kind != "py" and not kind.endswith("so")):
            continue
        if not (loaded[module] or "").startswith(f"{folder}/"):
            return module
    return None
