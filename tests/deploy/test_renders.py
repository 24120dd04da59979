"""What is rendered: valid for the oldest and the newest Kubernetes there is a promise for, and as somebody has looked at it.

`python -m tests.deploy.test_renders` writes the renders anew; then look at what changed.
"""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kubernetes_validate import ValidationError, validate

from tests.deploy.test_chart import CHART, VALUES, run
from tests.deploy.test_manifests import DEPLOY, EXAMPLE, kustomize

GOLDEN = pathlib.Path(__file__).parent / "golden"
VERSIONS = ("1.30", "1.37")
#: Of the Prometheus operator, which the validator has no schema of.
OPERATOR = "monitoring.coreos.com/v1"


def renders() -> Iterator[tuple[str, str]]:
    yield "kustomize", kustomize(EXAMPLE)
    for values in VALUES:
        done = run("template", "shelf", str(CHART), "--values", str(values))
        assert done.returncode == 0, done.stderr
        yield values.stem.removesuffix("-values"), done.stdout


@pytest.fixture(scope="module")
def rendered() -> dict[str, str]:
    return dict(renders())


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_is_valid_to_the_letter(rendered: dict[str, str], version: str) -> None:
    for name, text in {**rendered, "pod": (DEPLOY / "pod.yaml").read_text()}.items():
        for one in yaml.safe_load_all(text):
            if one["apiVersion"] != OPERATOR:
                assert validate(one, version, strict=True) == version, name


@pytest.mark.parametrize("version", VERSIONS)
def test_a_setting_that_there_is_not_would_be_found(version: str) -> None:
    _, pod = yaml.safe_load_all((DEPLOY / "pod.yaml").read_text())
    wrong: dict[str, Any] = copy.deepcopy(pod)
    wrong["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(ValidationError, match="readOnlyRootFileSystem"):
        validate(wrong, version, strict=True)


def test_what_is_rendered_is_what_was_looked_at(rendered: dict[str, str]) -> None:
    assert {path.stem: path.read_text() for path in GOLDEN.glob("*.yaml")} == rendered


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for kept in GOLDEN.glob("*.yaml"):
        kept.unlink()
    for name, text in renders():
        (GOLDEN / f"{name}.yaml").write_text(text)
