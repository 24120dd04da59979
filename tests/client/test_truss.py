"""A Truss's `config.yaml`: imported as our configuration, and held through the client."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hotshelf.adapters.truss import acquire_model_cache, read
from hotshelf.client import Client
from hotshelf.transport import Reply
from hotshelf_daemon.config import Settings, load
from hotshelf_shared.errors import BadConfiguration, NotFound
from tests.faults.scripted_gcs import service_account_key

from .conftest import Run
from .fakes import FakeDaemon

SECRET = "s3cr3t-value-that-nobody-may-see"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
ACCOUNT = {"aws_access_key_id": "AKIA", "aws_secret_access_key": SECRET, "aws_region": "eu-west-1"}
CONFIG = {
    "model_name": "sdxl",
    "secrets": {"hf_access_token": None},
    "model_cache": [
        {"repo_id": SDXL, "revision": "main", "allow_patterns": ["*.json", "unet/*.safetensors"], "ignore_patterns": ["vae/*"]},
        {"repo_id": "gs://weights/sdxl", "kind": "gcs"},
        {"repo_id": "s3://tuned/sdxl", "kind": "s3"},
    ],
}


@pytest.fixture
def truss(tmp_path: Path) -> Path:
    """The folder of a Truss."""
    folder = tmp_path / "my truss"
    (folder / "data").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def written(truss: Path, body: object) -> str:
    path = truss / "config.yaml"
    path.write_text(body if isinstance(body, str) else yaml.safe_dump(body))
    return str(path)


def imported(run: Run, truss: Path, *more: str) -> dict[str, Any]:
    result = run("import-truss", str(truss / "config.yaml"), *more, "--format", "json")
    assert result.exit_code == 0, result.output
    body: dict[str, Any] = json.loads(result.stdout)
    return body


def accepted(text: str) -> Settings:
    """By our loader; settings of kinds of sources that this version has no origin for are left out."""
    body = {key: value for key, value in yaml.safe_load(text).items() if key in Settings.model_fields}
    return load({}, {}, text=yaml.safe_dump(body)).settings


# ---- hotshelf import-truss


def test_what_it_prints_is_a_configuration_that_names_what_truss_caches(run: Run, truss: Path) -> None:
    (truss / "data" / "s3_credentials.json").write_text(json.dumps(ACCOUNT))
    for form in ("human", "quiet"):
        result = run("import-truss", str(truss / "config.yaml"), "--format", form)
        assert result.exit_code == 0
        assert SECRET not in result.output
        settings = accepted(result.stdout)
        assert settings.model_cache == CONFIG["model_cache"]
        assert {*settings.names} == {SDXL, "weights/sdxl", "tuned/sdxl"}
        assert settings.origins["truss"].buckets == ["tuned"]
        assert (settings.origins["truss"].access_key_id, settings.origins["truss"].region) == ("AKIA", "eu-west-1")


def test_credentials_stay_in_their_files_wherever_data_is(run: Run, truss: Path, tmp_path: Path) -> None:
    assert imported(run, truss)["config"]["origins"]["truss"] == {"buckets": ["tuned"], "unsigned": True}
    assert imported(run, truss)["config"]["gcs"] == {"unsigned": True}
    (truss / "data" / "s3_credentials.json").write_text(json.dumps(ACCOUNT))
    (truss / "data" / "service_account.json").write_text(service_account_key("http://127.0.0.1:1"))
    found = imported(run, truss)["config"]
    assert found["origins"]["truss"]["credentials_file"] == str(truss / "data" / "s3_credentials.json")
    assert found["gcs"] == {"service_account_file": str(truss / "data" / "service_account.json")}
    (truss / "data").rename(truss / "elsewhere")
    written(truss, {**CONFIG, "data_dir": "elsewhere"})
    assert imported(run, truss)["config"]["origins"]["truss"]["credentials_file"] == str(
        truss / "elsewhere/s3_credentials.json"
    )
    assert imported(run, truss, "--data", str(tmp_path))["config"]["origins"]["truss"]["unsigned"] is True


def test_the_token_s_file_is_named_where_truss_mounts_it(run: Run, truss: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotshelf.cli.truss.SECRETS", ("/none/here", str(truss)))
    assert any("HF_TOKEN_FILE" in warning for warning in imported(run, truss)["warnings"])
    (truss / "my_token").write_text(SECRET)
    written(truss, {"model_cache": [{"repo_id": SDXL, "runtime_secret_name": "my_token"}]})
    found = imported(run, truss)
    assert found["config"]["hf"] == {"token_file": str(truss / "my_token")}
    assert SECRET not in json.dumps(found)


def test_only_what_is_needed_is_printed(run: Run, truss: Path) -> None:
    written(truss, {"model_cache": [{"repo_id": SDXL}]})
    assert imported(run, truss)["config"] == {"model_cache": [{"repo_id": SDXL}]}
    written(truss, {"model_name": "empty"})
    nothing = imported(run, truss)
    assert nothing["config"] == {"model_cache": []}
    assert any("caches nothing" in warning for warning in nothing["warnings"])


def test_what_is_left_out_is_named_in_comments_and_its_value_nowhere(run: Run, truss: Path) -> None:
    body = {"hf_cache": [{"repo_id": SDXL, "token": SECRET, "odd\nkey: {": 1}], "external_data": [{"url": "x"}]}
    result = run("import-truss", written(truss, body))
    comments = [line for line in result.stdout.splitlines() if line.startswith("#")]
    for word in ("hf_cache", "'token'", "external_data", "s3:GetObject", "s3:ListBucket"):
        assert any(word in line for line in comments), word
    assert SECRET not in result.stdout
    assert accepted(result.stdout).model_cache == [{"repo_id": SDXL}]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (f"model_cache: [{{repo_id: {SECRET}\nx", "not YAML"),
        ("- a", "mapping"),
        ("", "mapping"),
        ("&a [*a", "not YAML"),
        ("[" * 5_000, "not YAML"),
        ("a: 2026-05-99", "not YAML"),
        ("model_cache: {repo_id: a/b}", "list"),
        ("model_cache: [{repo_id: b/c, kind: azure}]", "Azure"),
        ("model_cache: [{repo_id: a/b, ignore_patterns: '*'}]", "model_cache[0].ignore_patterns"),
    ],
)
def test_a_file_that_cannot_be_used_is_78_with_the_place(run: Run, truss: Path, text: str, word: str) -> None:
    result = run("import-truss", written(truss, text))
    assert (result.exit_code, result.stdout) == (78, "")
    assert word in result.stderr
    assert SECRET not in result.stderr


def test_a_malformed_account_is_78_by_its_field(run: Run, truss: Path) -> None:
    (truss / "data" / "s3_credentials.json").write_text(json.dumps({**ACCOUNT, "aws_access_key_id": [SECRET]}))
    key = json.loads(service_account_key("http://127.0.0.1:1"))
    (truss / "data" / "service_account.json").write_text(json.dumps({**key, "client_email": None, "private_key": SECRET}))
    for field, file in (("aws_access_key_id", "s3_credentials.json"), ("client_email", "service_account.json")):
        result = run("import-truss", str(truss / "config.yaml"))
        assert result.exit_code == 78
        assert field in result.stderr
        assert SECRET not in result.output
        (truss / "data" / file).unlink()


def test_a_file_that_is_not_there_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    assert run("import-truss", str(tmp_path / "none.yaml")).exit_code == 2


def test_validate_says_what_is_left_out(run: Run, truss: Path) -> None:
    file = written(truss, {"model_cache": [{"repo_id": SDXL, "token": SECRET}]})
    result = run("config", "validate", "--config", file)
    assert result.exit_code == 0
    assert "'token'" in result.stderr
    assert SECRET not in result.output
    assert json.loads(run("config", "validate", "--config", file, "--format", "json").stdout)["warnings"]


# ---- hotshelf.adapters.truss


def test_everything_that_is_cached_is_held_by_truss_s_name_until_let_go(
    client: Client, daemon: FakeDaemon, truss: Path
) -> None:
    with acquire_model_cache(truss / "config.yaml", client=client, timeout=20) as cache:
        assert [*cache] == [SDXL, "weights/sdxl", "tuned/sdxl"]
        assert cache["tuned/sdxl"].source == "s3://tuned/sdxl"
        assert cache[SDXL].path.is_dir()
        assert len(daemon.leases) == 3
    assert daemon.leases == {}
    asked = next(request for request in iter(daemon.requests.get, None) if request.path == "/v1/leases")
    assert asked.body["sources"] == [
        {"source": f"hf://{SDXL}", "allow_patterns": ["*.json", "unet/*.safetensors"], "ignore_patterns": ["vae/*"]},
        {"source": "gs://weights/sdxl"},
        {"source": "s3://tuned/sdxl"},
    ]


def test_a_truss_that_caches_nothing_asks_for_nothing(client: Client, daemon: FakeDaemon, truss: Path) -> None:
    with acquire_model_cache(written(truss, {"model_cache": []}), client=client) as cache:
        assert len(cache) == 0
    assert daemon.requests.empty()


def test_all_or_nothing_is_held(client: Client, daemon: FakeDaemon, truss: Path) -> None:
    def refuse(_: object) -> Reply:
        raise NotFound("there is no such bucket")

    daemon.acquires.append(refuse)
    with pytest.raises(NotFound):
        acquire_model_cache(truss / "config.yaml", client=client, timeout=20)
    assert daemon.leases == {}


def test_the_file_is_read_by_its_old_name_too(truss: Path) -> None:
    cache = read(written(truss, {"hf_cache": [{"repo_id": SDXL}]}))
    assert [one.name for one in cache.entries] == [SDXL]
    assert cache.warnings


def test_a_file_that_is_none_is_refused_without_being_repeated(truss: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path, Path(written(truss, f"a: {{{SECRET}: [")), Path("a\0b")):
        with pytest.raises(BadConfiguration) as refused:
            read(path)
        assert SECRET not in str(refused.value)
    (truss / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadConfiguration):
        read(truss / "config.yaml")


def test_importing_it_needs_the_standard_library_only_and_reading_says_what_to_install(truss: Path) -> None:
    script = (
        "import sys; sys.modules['yaml'] = None; before = {*sys.modules}\n"
        "import hotshelf.adapters.truss as truss, hotshelf.errors as errors\n"
        "tops = {name.partition('.')[0] for name in {*sys.modules} - before} - set(sys.stdlib_module_names)\n"
        "assert tops <= {'hotshelf', 'hotshelf_shared'}, tops\n"
        "try:\n    truss.read(sys.argv[1])\nexcept errors.HotshelfError as error:\n    print(error)"
    )
    command = [sys.executable, "-c", script, str(truss / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "PyYAML" in done.stdout
    assert "pip install" in done.stdout
