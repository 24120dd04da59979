"""Images and pods of this machine, by podman. Where no registry can be reached, a stand-in for the base image is made."""

from __future__ import annotations

import json
import pathlib
import subprocess
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]
#: Sets podman up for this kind of machine, and hands its package index on to builds; plain podman where it is not there.
TOOL = ROOT.parent / "shared" / "tools" / "pod.sh"
BASE = "docker.io/library/python:3.11-slim"


def podman(*args: str, check: bool = True, timeout_s: float = 120) -> str:
    argv = [str(TOOL), "podman", *args] if TOOL.exists() else ["podman", *args]
    return _run(argv, check=check, timeout_s=timeout_s)


def prepare() -> None:
    """The base image, and what podman needs to run pods. Skips, loudly, where no image can be had."""
    if TOOL.exists():
        _run([str(TOOL), "setup"], timeout_s=900)
        return
    try:
        podman("pull", "--policy=missing", BASE, timeout_s=600)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"NO POD WAS RUN: {BASE} cannot be had here: {str(error)[-300:]}")


def build(dockerfile: str, tag: str) -> int:
    """From the repository's root; the image's bytes."""
    if TOOL.exists():
        _run([str(TOOL), "build", dockerfile, tag, "."], timeout_s=1_500)
    else:
        podman("build", "-f", dockerfile, "-t", tag, ".", timeout_s=1_500)
    return size(tag)


def size(tag: str) -> int:
    return int(json.loads(podman("image", "inspect", tag))[0]["Size"])


def play(manifest: pathlib.Path) -> None:
    down(manifest)
    podman("kube", "play", "--network=none", str(manifest), timeout_s=300)


def down(manifest: pathlib.Path) -> None:
    podman("kube", "down", str(manifest), check=False)


def inspect(container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(podman("container", "inspect", container))[0]
    return found


def _run(argv: list[str], *, check: bool = True, timeout_s: float) -> str:
    done = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True, timeout=timeout_s)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(argv)}\n{done.stdout[-2_000:]}\n{done.stderr[-4_000:]}")
    return done.stdout
