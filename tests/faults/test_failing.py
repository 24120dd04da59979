"""Rows 37 to 42: any single call to the disk may fail, and the caller is served or told why, then and afterwards."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from tests.faults import shortening
from tests.faults.scenarios import SCENARIOS
from tests.faults.soaking import SEED, in_rounds
from tests.faults.test_killing import ROOT, scratch  # noqa: F401 - a fixture
from tests.servers.child import clean_environment

pytestmark = [pytest.mark.root, pytest.mark.needs("strace")]
#: Of several hundred points and errors; another choice needs another seed.
SAMPLE = {"acquire": 40, "fetch": 20, "snapshot": 10, "evict": 10, "bind": 20, "unbind": 10}
SHORTENED = {"acquire": 25, "bind": 15}


def fail(scenario: str, folder: pathlib.Path, sample: int) -> list[dict[str, object]]:
    argv = [sys.executable, "-m", "tests.faults.failing", scenario, str(folder / "x"), str(sample), SEED]
    return report(argv, clean_environment())


def report(argv: list[str], env: dict[str, str]) -> list[dict[str, object]]:
    done = subprocess.run(argv, cwd=ROOT, env=env, check=False, capture_output=True, text=True, timeout=3_600)
    assert done.returncode == 0, done.stderr[-4_000:]
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def wrongs(found: list[dict[str, object]]) -> list[str]:
    return [f"{one.get('fault') or one.get('number')}: {wrong}" for one in found for wrong in one["wrongs"]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("scenario", SAMPLE)
def test_a_call_to_the_disk_that_fails_is_a_typed_error_and_costs_nothing_else(
    scratch: pathlib.Path,  # noqa: F811
    scenario: str,
) -> None:
    found = fail(scenario, scratch, SAMPLE[scenario])
    assert wrongs(found) == []
    assert len(found) == SAMPLE[scenario]
    assert {one["told"] for one in found} <= {None, "insufficient_space", "internal_error"}


@pytest.mark.needs("fiu-run")
@pytest.mark.parametrize("scenario", SHORTENED)
def test_a_write_that_is_cut_short_is_taken_up_where_it_stopped(scratch: pathlib.Path, scenario: str) -> None:  # noqa: F811
    found = report(*shortening.command(scenario, scratch / "x", SHORTENED[scenario], SEED))
    assert wrongs(found) == []
    assert sum(bool(one["shortened"]) for one in found) > len(found) / 2


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_call_to_the_disk_may_fail(scratch: pathlib.Path, scenario: str) -> None:  # noqa: F811
    def every(_count: int, _seed: str) -> int:
        found = fail(scenario, scratch, 0)
        assert wrongs(found) == []
        return len(found)

    in_rounds(f"failing calls of {scenario}", 1, 1, every)


@pytest.mark.soak
@pytest.mark.needs("fiu-run")
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_write_may_be_cut_short(scratch: pathlib.Path, scenario: str) -> None:  # noqa: F811
    def every(_count: int, _seed: str) -> int:
        found = report(*shortening.command(scenario, scratch / "x", 0, SEED))
        assert wrongs(found) == []
        return sum(bool(one["shortened"]) for one in found)

    in_rounds(f"short writes of {scenario}", 1, 1, every)
