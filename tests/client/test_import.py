"""The client is thin: what importing it loads, and what installing it brings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hotshelf
from hotshelf_shared import errors as shared

HEAVY = {"torch", "diffusers", "aiohttp", "boto3", "pydantic", "click", "rich", "yaml", "sqlite_utils"}


def python(script: str, *options: str, executable: str = sys.executable) -> str:
    command = [executable, *options, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def modules_after(script: str) -> set[str]:
    return set(json.loads(python(f"import sys, json\n{script}\nprint(json.dumps(sorted(sys.modules)))")))


def test_importing_hotshelf_loads_nothing_else() -> None:
    loaded = modules_after("import hotshelf") - modules_after("pass")
    assert loaded <= {"hotshelf", "__future__"}


@pytest.mark.parametrize("name", sorted(hotshelf.__all__))
def test_every_name_needs_the_standard_library_only(name: str) -> None:
    loaded = modules_after(f"import hotshelf; hotshelf.{name}") - modules_after("pass")
    tops = {module.split(".")[0] for module in loaded}
    assert not tops & HEAVY
    assert tops - set(sys.stdlib_module_names) <= {"hotshelf", "hotshelf_shared"}


def test_importing_hotshelf_takes_less_than_60_ms() -> None:
    script = "import time; t = time.perf_counter(); import hotshelf; print(time.perf_counter() - t)"
    assert min(float(python(script)) for _ in range(5)) < 0.060


def test_the_names_are_listed_and_others_are_refused() -> None:
    assert set(hotshelf.__all__) <= set(dir(hotshelf))
    with pytest.raises(AttributeError, match="aquire"):
        _ = hotshelf.aquire


def test_every_error_of_the_contract_is_in_hotshelf_errors() -> None:
    assert {cls.__name__ for cls in shared.BY_CODE.values()} == set(hotshelf.errors.__all__)


@pytest.mark.soak
def test_the_wheel_installs_alone_into_an_empty_environment(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(root)], check=True, timeout=300)
    [wheel] = tmp_path.glob("hotshelf-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    thin = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([thin, "-m", "pip", "install", "-q", "--no-index", str(wheel)], check=True, timeout=120)
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = "import hotshelf; print(hotshelf.Client('/tmp/nobody').transport.address)"
    done = subprocess.run([thin, "-c", script], capture_output=True, text=True, check=True, env=bare, timeout=60)
    assert done.stdout == "/tmp/nobody\n"
    command = subprocess.run([tmp_path / "venv/bin/hotshelf", "ls"], capture_output=True, text=True, env=bare, check=False)
    assert (command.returncode, command.stderr) == (1, "The hotshelf command needs more: pip install 'hotshelf[cli]'\n")
