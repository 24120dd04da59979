"""`model_cache:` and Truss's credential files among the settings."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import yaml

from hotshelf_daemon.acquire import Names
from hotshelf_daemon.config import Loaded, load, reread
from hotshelf_shared.errors import BadConfiguration
from hotshelf_shared.patterns import Patterns
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Wish

SECRET = "s3cr3t-value-that-nobody-may-see"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
ACCOUNT = {"aws_access_key_id": "AKIA", "aws_secret_access_key": SECRET, "aws_region": "eu-west-1"}


def of(body: object, environ: dict[str, str] | None = None) -> Loaded:
    return load({}, environ or {}, text=yaml.safe_dump(body))


def refusal(body: object) -> BadConfiguration:
    with pytest.raises(BadConfiguration) as refused:
        of(body)
    assert SECRET not in str(refused.value)
    return refused.value


# ---- model_cache


def test_what_truss_names_is_a_name_here_preloaded_and_kept() -> None:
    entries = [
        {"repo_id": SDXL, "allow_patterns": ["*.safetensors", "*.json"], "ignore_patterns": ["vae/*"]},
        {"repo_id": "gs://weights/sdxl", "kind": "gcs"},
    ]
    settings = of({"model_cache": entries}).settings
    assert settings.model_cache == entries
    assert {*settings.names} == {SDXL, "weights/sdxl"}
    assert all(model.preload and model.is_viewed for model in settings.names.values())
    want = Names(settings).want(Wish(Source.parse(SDXL)))
    assert (str(want.source), want.patterns) == (f"hf://{SDXL}", Patterns.parse(["*.safetensors", "*.json"], ["vae/*"]))
    assert str(settings.names["weights/sdxl"].wish.source) == "gs://weights/sdxl"


def test_models_and_loras_win_over_what_truss_names_and_take_its_folder(tmp_path: pathlib.Path) -> None:
    cache = [{"repo_id": "s3://weights/a"}, {"repo_id": "s3://weights/b"}]
    settings = of({"model_cache": cache, "models": {"weights/a": {"source": "s3://other/a"}}}).settings
    assert settings.names["weights/a"].source == "s3://other/a"
    names = Names(settings)
    assert names.places() == {names.configured()["weights/b"].key: ("model_cache/weights/b",)}


def test_the_old_name_is_read_and_both_are_said_to_be_one_too_many() -> None:
    old = of({"hf_cache": [{"repo_id": SDXL}]})
    assert [*old.settings.names] == [SDXL]
    assert any("hf_cache" in warning for warning in old.warnings)
    assert ("model_cache", "file /etc/hotshelf/config.yaml") in [(key, where) for key, _, where in old.rows()]
    both = of({"hf_cache": [{"repo_id": SDXL}], "model_cache": [{"repo_id": "x/y"}]})
    assert [*both.settings.names] == ["x/y"]
    assert any("hf_cache" in warning for warning in both.warnings)
    assert of({"hf_cache": None}).settings.names == of({"model_cache": None}).settings.names == {}


def test_the_environment_may_hold_the_list() -> None:
    loaded = of({}, {"HOTSHELF_MODEL_CACHE": json.dumps([{"repo_id": SDXL}])})
    assert [*loaded.settings.names] == [SDXL]


def test_unknown_keys_are_named_and_their_values_shown_nowhere() -> None:
    loaded = of({"model_cache": [{"repo_id": SDXL, "token": SECRET}]})
    assert any("'token'" in warning for warning in loaded.warnings)
    assert SECRET not in repr(loaded.settings) + str(loaded.rows()) + str(loaded.warnings)
    assert of({"models": {"m": {"source": "s3://b/m"}}}).warnings == ()


@pytest.mark.parametrize(
    "value", ["x", {"repo_id": SDXL}, [None], [{"repo_id": 3}], [{}], [{"repo_id": "a/b", "allow_patterns": "*"}], [{1: 2}]]
)
def test_what_is_no_list_of_truss_s_is_refused(value: Any) -> None:
    for name in ("model_cache", "hf_cache"):
        assert "model_cache" in refusal({name: value}).message


# ---- credentials_file


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "s3_credentials.json"
    path.write_text(json.dumps(ACCOUNT))
    return path


def origin(file: pathlib.Path, **more: Any) -> dict[str, Any]:
    return {"origins": {"aws": {"credentials_file": str(file), **more}}}


def test_truss_s_file_is_the_origin_s_account_and_region(file: pathlib.Path) -> None:
    loaded = of(origin(file))
    aws = loaded.settings.origins["aws"]
    assert (aws.access_key_id, aws.region, aws.session_token) == ("AKIA", "eu-west-1", None)
    assert loaded.settings.secrets() == {SECRET}
    assert SECRET not in str(loaded.rows()) + repr(loaded)
    assert of(origin(file, region="us-east-1")).settings.origins["aws"].region == "us-east-1"


def test_it_may_hold_a_session_and_is_read_anew(file: pathlib.Path) -> None:
    file.write_text(json.dumps({**ACCOUNT, "aws_session_token": "first\n"}))
    aws = of(origin(file)).settings.origins["aws"]
    assert aws.session_token is not None
    assert aws.session_token.get_secret_value() == "first"
    file.write_text(json.dumps({**ACCOUNT, "aws_access_key_id": "ASIA", "aws_session_token": "second"}))
    fresh = reread(aws)
    assert fresh.session_token is not None
    assert (fresh.access_key_id, fresh.session_token.get_secret_value()) == ("ASIA", "second")
    file.write_text(json.dumps(ACCOUNT))
    assert reread(fresh).session_token is None


def test_the_variables_of_the_seed_do_not_mix_with_it(file: pathlib.Path) -> None:
    body = origin(file, endpoint_url="https://s3.eu.backblazeb2.com")
    aws = of(body, {"B2_KEY_ID": "other", "B2_SECRET_KEY": "other"}).settings.origins["aws"]
    assert aws.access_key_id == "AKIA"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "not JSON"),
        (f'{{"aws_secret_access_key": "{SECRET}', "not JSON"),
        (f'["{SECRET}"]', "no JSON object"),
        ("[" * 9_000, "not JSON"),
        (json.dumps({"aws_secret_access_key": SECRET, "aws_region": "x"}), "aws_access_key_id"),
        (json.dumps({**ACCOUNT, "aws_secret_access_key": [SECRET]}), "aws_secret_access_key"),
        (json.dumps({**ACCOUNT, "aws_secret_access_key": None}), "aws_secret_access_key"),
        (json.dumps({**ACCOUNT, "aws_region": "  "}), "aws_region"),
        (json.dumps({**ACCOUNT, "aws_session_token": 7}), "aws_session_token"),
        (json.dumps({**ACCOUNT, "aws_secret_access_key": f"{SECRET}\nX-Header: 1"}), "aws_secret_access_key"),
        (json.dumps({**ACCOUNT, "aws_access_key_id": "ü"}), "aws_access_key_id"),
    ],
)
def test_a_file_that_is_not_right_is_refused_by_the_field_and_never_repeated(file: pathlib.Path, text: str, field: str) -> None:
    aws = of(origin(file)).settings.origins["aws"]
    file.write_text(text)
    error = refusal(origin(file))
    assert "origins.aws.credentials_file" in error.message
    assert str(file) in error.message
    assert field in error.message
    with pytest.raises(BadConfiguration, match="credentials_file"):
        reread(aws)


def test_a_file_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    assert "/none/here" in refusal(origin(pathlib.Path("/none/here"))).message
    assert "Secret" in refusal(origin(tmp_path)).hint


@pytest.mark.parametrize("other", ["access_key_id", "secret_access_key", "secret_access_key_file", "session_token"])
def test_it_stands_alone(file: pathlib.Path, other: str) -> None:
    error = refusal(origin(file, **{other: SECRET}))
    assert "credentials_file" in error.message
    assert other in error.message
