"""The environment: everything that must be the same before one machine runs what another one compiled.

Invariant: two machines with the same key can load each other's caches. Inductor compiles C++ with `-march=native`, also for
graphs on a GPU, so the CPU's instructions count always: code for AVX-512 ends a process without it by SIGILL. The libraries
that compiled code is linked to count; the compiler does not, which a machine that only loads need not even have.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sysconfig
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from hotshelf_shared.errors import BadConfiguration

#: Raised when what a bundle holds, or where, is no longer what older ones hold.
FORMAT = "1"
_DIGEST_DIGITS = 16
_MOST_READABLE = 48
#: Of an x86 CPU's flags those that a compiler emits code for by itself; the rest is the kernel's, or asked for by name.
_EMITTED = re.compile(
    r"mmx|pni|s?sse|avx|fma|f16c|xop|tbm|bmi|abm|popcnt|movbe|adx|gfni|v?aes|v?pclmul|sha|sm[34]|amx|apx|cmpccxadd|cx16|lahf"
)


def environment_key() -> str:
    """Of this process, as `key_of` makes it. Raises BadConfiguration without torch."""
    return key_of(describe())


def key_of(facts: Mapping[str, str]) -> str:
    """What a person recognises, then a digest of every fact: ``torch_2.13.0-cpu_x86-64-avx512_8a…``. A bundle's first name."""
    told = ((facts.get(fact, "") for fact in name) for name in (("torch",), ("gpu", "capability"), ("machine", "isa")))
    words = (re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(name)).strip("-.")[:_MOST_READABLE] for name in told)
    digest = sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()
    return "_".join(("torch", *filter(None, words), digest[:_DIGEST_DIGITS]))


def describe() -> dict[str, str]:
    """The facts of this process and its current GPU. Imports torch, which starts CUDA there. Raises BadConfiguration."""
    torch = _torch()
    return {
        "format": FORMAT,
        "torch": str(torch.__version__),
        "torch_commit": str(torch.version.git_version or ""),
        "python": str(sysconfig.get_config_var("SOABI") or platform.python_version()),
        "machine": platform.machine(),
        "isa": str(torch.backends.cpu.get_cpu_capability()).lower(),
        "instructions": " ".join(_instructions()),
        "libc": "-".join(platform.libc_ver()),
        "libstdcxx": _libstdcxx(),
        "triton": _triton(),
        **accelerator(torch),
    }


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise BadConfiguration(
            f"compile caches are torch's, and torch cannot be imported: {error}", hint="pip install 'hotshelf[worker]'"
        ) from error
    return torch


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return str(getattr(triton, "__version__", "?"))


def accelerator(torch: Any) -> dict[str, str]:
    """Of the current GPU its name, what it can do, its runtime and its driver; nothing without one."""
    if not torch.cuda.is_available():
        return {}
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    if torch.version.hip:
        return {"gpu": gpu.name, "capability": gpu.gcnArchName, "runtime": f"rocm-{torch.version.hip}", "driver": _driver()}
    return {
        "gpu": gpu.name,
        "capability": f"sm{gpu.major}{gpu.minor}",
        "runtime": f"cuda-{torch.version.cuda}",
        "driver": _driver(),
    }


def _driver() -> str:
    """The branch of NVIDIA's driver (550 of 550.54.15); of another one the kernel's word, which may be none."""
    for path in ("/proc/driver/nvidia/version", "/sys/module/amdgpu/version"):
        if text := _text(path):
            return driver_branch(text)
    return ""


def driver_branch(text: str) -> str:
    found = re.search(r"\b(\d+)\.\d+(\.\d+)*\b", text)
    return found[1] if found else ""


def _instructions() -> list[str]:
    return instructions_of(_first_processor(), platform.machine())


def instructions_of(cpuinfo: str, machine: str) -> list[str]:
    """Of one processor's lines in /proc/cpuinfo what compiled code may use, sorted."""
    found = re.search(r"^(?:flags|Features|features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    return sorted(_emitted(flags) if machine in ("x86_64", "AMD64") else flags)


def _emitted(flags: Iterable[str]) -> set[str]:
    return {flag for flag in flags if _EMITTED.match(flag)}


def _first_processor() -> str:
    """Up to the empty line: there may be hundreds of processors. Empty where the kernel tells nothing."""
    return _text("/proc/cpuinfo").partition("\n\n")[0]


def _libstdcxx() -> str:
    """Which C++ library this process has: code that a newer compiler made may want more than an older one offers."""
    found = re.search(r"\s(/\S*libstdc\+\+\.so\S*)", _text("/proc/self/maps"))
    return os.path.basename(os.path.realpath(found[1])) if found else ""


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
