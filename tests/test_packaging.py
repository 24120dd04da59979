"""What users install: a thin client that needs nothing, and extras that say so when they are missing."""

from __future__ import annotations

import email
import pathlib
import re
import statistics
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Sequence

import pytest

from tests.servers.child import clean_environment

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MOST_MS = 60


def run(argv: Sequence[str | pathlib.Path], *, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Away from this checkout: nothing of it is importable by accident."""
    env = {name: value for name, value in clean_environment().items() if not name.startswith("PYTHON")}
    return subprocess.run([str(a) for a in argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, ROOT]
    done = run(build, cwd=folder)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The bin folder of an environment that holds the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-cache-dir", wheel]
    done = run(install, cwd=folder)
    assert done.returncode == 0, done.stderr
    return python.parent


def test_the_wheel_needs_nothing_and_offers_the_extras_of_the_contract(wheel: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [entry for entry in archive.namelist() if entry.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    required = metadata.get_all("Requires-Dist") or []
    assert [need for need in required if "extra ==" not in need] == []
    assert set(metadata.get_all("Provides-Extra") or []) == {
        *("cli", "daemon", "sign", "worker", "flash", "gcs", "demo", "bench"),
    }
    assert metadata["Requires-Python"] == ">=3.11"


def test_the_wheel_holds_the_three_packages_typed_and_no_test(wheel: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"hotshelf", "hotshelf_daemon", "hotshelf_shared"}
    assert {f"{top}/py.typed" for top in tops} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_a_bare_environment_imports_the_client_and_no_third_party_module(bare: pathlib.Path, tmp_path: pathlib.Path) -> None:
    look = "import sys, hotshelf; print(*sorted({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    done = run([bare / "python", "-c", look], cwd=tmp_path)
    assert done.stderr == ""
    assert set(done.stdout.split()) <= {"__main__", "hotshelf", "hotshelf_shared"}


def test_importing_the_client_loads_nothing_heavy_where_everything_is_installed(tmp_path: pathlib.Path) -> None:
    heavy = {"torch", "diffusers", "transformers", "aiohttp", "boto3", "pydantic", "click", "rich", "numpy", "yaml"}
    done = subprocess.run(
        [sys.executable, "-c", "import sys, hotshelf; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert heavy & set(done.stdout.split()) == set()


def test_importing_the_client_takes_less_than_60_ms(bare: pathlib.Path, tmp_path: pathlib.Path) -> None:
    clock = "import time; began = time.perf_counter(); import hotshelf; print(time.perf_counter() - began)"
    taken = [float(run([bare / "python", "-I", "-c", clock], cwd=tmp_path).stdout) * 1000 for _ in range(9)]
    assert statistics.median(taken[1:]) < MOST_MS, taken


@pytest.mark.parametrize(("program", "extra"), [("hotshelf", "cli"), ("hotshelfd", "daemon")])
def test_a_program_without_its_extra_says_in_one_sentence_what_to_install(
    bare: pathlib.Path, tmp_path: pathlib.Path, program: str, extra: str
) -> None:
    done = run([bare / program, "--help"], cwd=tmp_path)
    said = (done.stdout + done.stderr).strip()
    assert done.returncode != 0
    assert f"pip install 'hotshelf[{extra}]'" in said
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1


def test_everything_that_make_installs_is_pinned() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        *(need for name in ("cli", "daemon", "sign", "worker", "demo") for need in extras[name]),
        *PROJECT["dependency-groups"]["dev"],
    ]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~! ]", need)[0]).lower() for need in wanted} - {"hotshelf"}
    assert names - pinned == set()
    assert pins["torch"] == "2.13.0"
