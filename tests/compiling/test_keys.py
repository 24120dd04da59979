"""The two names of a bundle: what must be the same before a machine runs what another one compiled, and what was compiled."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hotshelf.compiling import environment, graph_key, key_of
from hotshelf.compiling.environment import accelerator
from hotshelf_shared.bundle import BundleName

FACTS = {
    "format": "1", "torch": "2.13.0+cu128", "python": "cpython-311-x86_64-linux-gnu", "machine": "x86_64", "isa": "avx512",
    "instructions": "avx avx2 avx512f", "libc": "glibc-2.36", "libstdcxx": "libstdc++.so.6.0.30", "triton": "3.5.0",
    "gpu": "NVIDIA H100 80GB HBM3", "capability": "sm90", "runtime": "cuda-12.8", "driver": "550",
}  # fmt: skip
EPYC = "processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f constant_tsc arat hypervisor ibrs\nbogomips\t: 1\n"


def test_a_key_is_readable_and_is_a_bundle_s_name() -> None:
    key = key_of(FACTS)
    assert key.startswith("torch_2.13.0-cu128_NVIDIA-H100-80GB-HBM3-sm90_x86-64-avx512_")
    assert str(BundleName.of(key, graph_key("sdxl", {}))).startswith(key)


@pytest.mark.parametrize("fact", FACTS)
def test_a_machine_that_differs_in_one_thing_has_another_key(fact: str) -> None:
    without = {name: value for name, value in FACTS.items() if name != fact}
    assert len({key_of(FACTS), key_of(without), key_of({**FACTS, fact: "another"})}) == 3


def test_the_order_in_which_facts_are_told_does_not_count() -> None:
    assert key_of(dict(reversed(FACTS.items()))) == key_of(FACTS)


@pytest.mark.parametrize("odd", ["", "../../etc", "a/b", "x" * 5_000, "GeForce\n\0RTX", "кириллица", "..", "-"])
def test_odd_facts_and_names_still_make_names(odd: str) -> None:
    name = BundleName.of(key_of({**FACTS, "gpu": odd, "torch": odd, "machine": odd}), graph_key(odd, {odd: odd}))
    assert BundleName.parse(str(name)) == name


def test_an_avx512_machine_s_code_is_not_for_an_avx2_machine() -> None:
    older = EPYC.replace("avx512f", "")
    assert environment.instructions_of(EPYC, "x86_64") != environment.instructions_of(older, "x86_64")


def test_what_the_kernel_or_the_hypervisor_adds_to_the_flags_does_not_count() -> None:
    assert environment.instructions_of(EPYC, "x86_64") == ["avx2", "avx512f", "sse2"]
    arm = "processor\t: 0\nFeatures\t: fp asimd sve bf16\n"
    assert environment.instructions_of(arm, "aarch64") == ["asimd", "bf16", "fp", "sve"]
    assert environment.instructions_of("", "riscv64") == []


@pytest.mark.parametrize(
    ("text", "branch"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024", "550"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.172.08  Release Build", "570"),
        ("6.10.5\n", "6"),
        ("", ""),
    ],
)
def test_of_a_driver_its_branch_counts(text: str, branch: str) -> None:
    assert environment.driver_branch(text) == branch


def test_graphs_are_told_apart_by_name_and_by_every_part() -> None:
    parts: dict[str, str | int | bool | None] = {"dtype": "float16", "mode": "default", "height": 1024}
    keys = {
        graph_key("sdxl", parts),
        graph_key("flux", parts),
        graph_key("sdxl", {**parts, "height": 512}),
        graph_key("sdxl", {}),
    }
    assert len(keys) == 4
    assert graph_key("sdxl", dict(reversed(parts.items()))) in keys


def torch_with(gpu: SimpleNamespace | None, *, cuda: str | None = None, hip: str | None = None) -> SimpleNamespace:
    there = SimpleNamespace(is_available=lambda: gpu is not None, current_device=lambda: 0, get_device_properties=lambda _: gpu)
    return SimpleNamespace(cuda=there, version=SimpleNamespace(cuda=cuda, hip=hip))


def test_of_a_gpu_its_name_what_it_can_do_and_its_runtime_count() -> None:
    h100 = SimpleNamespace(name="NVIDIA H100", major=9, minor=0)
    mi300 = SimpleNamespace(name="AMD Instinct MI300X", gcnArchName="gfx942:sramecc+:xnack-")
    nvidia, amd = accelerator(torch_with(h100, cuda="12.8")), accelerator(torch_with(mi300, hip="6.4"))
    assert {"gpu": "NVIDIA H100", "capability": "sm90", "runtime": "cuda-12.8"}.items() <= nvidia.items()
    assert {"gpu": "AMD Instinct MI300X", "capability": "gfx942:sramecc+:xnack-", "runtime": "rocm-6.4"}.items() <= amd.items()
    assert accelerator(torch_with(None, cuda="12.8")) == {}  # torch for CUDA, on a machine without a GPU


@pytest.mark.torch
def test_this_machine_has_the_same_key_each_time_it_is_asked() -> None:
    facts = environment.describe()
    assert environment.environment_key() == key_of(facts)
    assert {"torch", "python", "machine", "instructions", "libc"} <= {name for name, value in facts.items() if value}
