"""Mutation testing of the decisions everything rests on: `make mutate`. Fails when tests catch too few of the changes.

A copy of the tree is changed in one place at a time by cosmic-ray, and the module's own tests are run. What cannot matter is
left out: `|` in annotations, which are never evaluated, `slots`, and lines that say `pragma: no mutate` with the reason.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
MODULES = {
    "shared/hotshelf_shared/manifest.py": "tests/shared/test_manifest.py",
    "shared/hotshelf_shared/digest.py": "tests/shared/test_digest.py",
    "daemon/hotshelf_daemon/plan.py": "tests/daemon/test_plan.py",
    "daemon/hotshelf_daemon/states.py": "tests/daemon/test_states.py",
}
LEAST_PERCENT = 85
#: A mutant that allocates for ever must not take the machine with it.
MEMORY_BYTES = 4 << 30
CONFIG = """
[cosmic-ray]
module-path = "{module}"
timeout = 20.0
excluded-modules = []
test-command = "prlimit --as={memory} {python} -m pytest -q -x -p no:cacheprovider {tests}"
[cosmic-ray.distributor]
name = "local"
[cosmic-ray.filters.operators-filter]
exclude-operators = ["core/ReplaceBinaryOperator_BitOr_.*"]
"""


def mutate(module: str, folder: pathlib.Path) -> tuple[int, int, list[str]]:
    """How many changes were caught, how many there were, and the others as diffs."""
    config, session = folder / "config.toml", folder / "session.sqlite"
    session.unlink(missing_ok=True)
    config.write_text(CONFIG.format(module=module, tests=MODULES[module], python=sys.executable, memory=MEMORY_BYTES))
    tree = folder / "tree"
    packages = os.pathsep.join(str(tree / name) for name in ("shared", "client", "daemon"))
    env = {**os.environ, "PYTHONPATH": packages, "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_PROFILE": "mutation"}

    def run(program: str, *arguments: object) -> str:
        argv = [str(pathlib.Path(sys.executable).with_name(program)), *map(str, arguments)]
        return subprocess.run(argv, cwd=tree, env=env, check=True, capture_output=True, text=True).stdout

    run("cosmic-ray", "init", config, session)
    run("cr-filter-operators", session, config)
    run("cr-filter-pragma", session)
    run("cosmic-ray", "exec", config, session)
    jobs = [
        job
        for job in run("cr-report", "--show-diff", session).split("[job-id]")
        if "SKIPPED" not in job and "slots=False" not in job
    ]
    lived = [job for job in jobs if "SURVIVED" in job]
    caught = sum("KILLED" in job for job in jobs)
    return caught, caught + len(lived), lived


def main() -> int:
    short = []
    with tempfile.TemporaryDirectory(prefix="hs-mutation-") as name:
        folder = pathlib.Path(name)
        left_out = shutil.ignore_patterns(".git", ".venv*", ".soak", "*.pyc", "__pycache__")
        shutil.copytree(ROOT, folder / "tree", ignore=left_out, symlinks=True)
        for module in MODULES:
            caught, there, lived = mutate(module, folder)
            print(f"{module}: {caught} of {there} changes caught, {100 * caught / there:.0f} %", flush=True)
            if caught < there * LEAST_PERCENT / 100:
                short.append(module)
            for job in lived:
                print(*re.findall(r"^[-+](?![-+]).*$", job, re.MULTILINE), sep="\n    ", end="\n\n")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
