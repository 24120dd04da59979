"""The folder tree is the architecture: imports go down only, every room is on the map, no module is a drawer."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sysconfig

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = {"hotshelf_shared": "shared", "hotshelf": "client", "hotshelf_daemon": "daemon"}
SOURCES = sorted(path for package, home in PACKAGES.items() for path in (ROOT / home / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
#: What tests stand on; the tests themselves are read one at a time.
STANDS = [path for path in TESTS if not path.name.startswith("test_")]

MOST_LINES = 300
DRAWERS = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}


def named(paths: list[pathlib.Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def rooms_in_the_tree() -> set[str]:
    """`package.module` for each top-level module or package of the three."""
    return {
        f"{package}.{entry.stem}"
        for package, home in PACKAGES.items()
        for entry in (ROOT / home / package).iterdir()
        if (entry.suffix == ".py" and entry.stem != "__init__") or (entry / "__init__.py").is_file()
    }


def rooms_on_the_map() -> list[str]:
    """The modules named at the start of a row, in the table below `## Rooms`."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    section = re.search(r"^## Rooms\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section, "ARCHITECTURE.md has no section `## Rooms`"
    return re.findall(r"^\| *`([\w.]+)`", section[1], re.MULTILINE)


def test_imports_go_down_only_and_every_module_has_a_declared_room() -> None:
    linter = pathlib.Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_map_in_architecture_md_names_exactly_the_rooms_there_are() -> None:
    named = rooms_on_the_map()
    assert sorted(named) == sorted(rooms_in_the_tree())


def test_there_is_one_import_package_in_each_home_and_no_stray_module() -> None:
    for package, home in PACKAGES.items():
        assert {path.parent.name for path in (ROOT / home).glob("*/__init__.py")} == {package}
        assert not list((ROOT / home).glob("*.py"))


def test_every_folder_of_tests_is_a_package() -> None:
    folders = {path.parent for path in TESTS}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_no_module_is_a_drawer() -> None:
    assert named([path for path in SOURCES + TESTS if {path.stem, *path.relative_to(ROOT).parts} & DRAWERS]) == []


def test_no_module_is_too_long_to_read() -> None:
    assert named([path for path in SOURCES + STANDS if len(path.read_text().splitlines()) > MOST_LINES]) == []


def test_nothing_is_left_for_later() -> None:
    later = re.compile(r"\b(raise NotImplementedError|TODO|FIXME|XXX)\b")
    assert named([path for path in SOURCES if later.search(path.read_text())]) == []


def test_every_module_says_what_its_job_is() -> None:
    assert (
        named([path for path in SOURCES if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))])
        == []
    )
