"""Settings: which layer wins, where each value came from, and what is refused with what words."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from hotshelf_daemon.config import Loaded, hub_token, load, sign_password
from hotshelf_shared.errors import BadConfiguration

SECRET = "s3cr3t-value-that-nobody-may-see"


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "hotshelf.yaml"


def of(environ: Mapping[str, str] | None = None, /, **flags: Any) -> Loaded:
    return load(flags, environ or {})


def written(file: pathlib.Path, body: object) -> str:
    file.write_text(body if isinstance(body, str) else yaml.safe_dump(body))
    return str(file)


def refusal(environ: Mapping[str, str] | None = None, /, **flags: Any) -> BadConfiguration:
    with pytest.raises(BadConfiguration) as refused:
        of(environ, **flags)
    assert refused.value.hint
    assert SECRET not in str(refused.value)
    return refused.value


def row(loaded: Loaded, key: str) -> tuple[str, str]:
    return next((value, where) for name, value, where in loaded.rows() if name == key)


# ---- layers


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(file: pathlib.Path) -> None:
    config = written(file, {"revalidate_s": 1, "lease_ttl_s": 2, "drain_s": 3, "log_level": "error"})
    env = {"HOTSHELF_LEASE_TTL_S": "20", "HOTSHELF_DRAIN_S": "30", "HOTSHELF_LOG_LEVEL": "warning"}
    loaded = of(env, config=config, drain_s="300", log_level="debug")
    s = loaded.settings
    assert (s.lease_eof_s, s.revalidate_s, s.lease_ttl_s, s.drain_s, s.log_level) == (5, 1, 20, 300, "debug")
    assert row(loaded, "lease_eof_s")[1] == "default"
    assert row(loaded, "revalidate_s")[1] == f"file {config}"
    assert row(loaded, "lease_ttl_s")[1] == "environment HOTSHELF_LEASE_TTL_S"
    assert row(loaded, "drain_s")[1] == "flag --drain-s"


def test_layers_merge_key_by_key_and_each_key_knows_its_own(file: pathlib.Path) -> None:
    config = written(file, {"origins": {"weed": {"endpoint_url": "http://weed:8333", "region": "here"}}})
    loaded = of({"HOTSHELF_ORIGINS__WEED__REGION": "there", "HOTSHELF_FETCH__CONNECTIONS": "3"}, config=config)
    origin = loaded.settings.origins["weed"]
    assert (origin.endpoint_url, origin.region, loaded.settings.fetch.connections) == ("http://weed:8333", "there", 3)
    assert row(loaded, "origins.weed.endpoint_url")[1] == f"file {config}"
    assert row(loaded, "origins.weed.region") == ("there", "environment HOTSHELF_ORIGINS__WEED__REGION")


def test_the_environment_names_the_file(file: pathlib.Path) -> None:
    assert of({"HOTSHELF_CONFIG": written(file, {"revalidate_s": 7})}).settings.revalidate_s == 7


def test_every_value_is_shown_with_where_it_came_from(file: pathlib.Path) -> None:
    loaded = of({}, config=written(file, {"models": {"sdxl": {"source": "s3://b/m", "allow_patterns": ["*.json"]}}}))
    assert row(loaded, "models.sdxl.source") == ("s3://b/m", f"file {file}")
    assert row(loaded, "models.sdxl.allow_patterns")[1] == f"file {file}"
    assert row(loaded, "models.sdxl.pin") == ("false", "default")
    assert row(loaded, "budget") == ("90%", "default")
    assert all(where for _, _, where in loaded.rows())


def test_an_empty_file_sets_nothing(file: pathlib.Path) -> None:
    assert of(config=written(file, "")).settings == of().settings


def test_lists_and_mappings_in_the_environment_are_yaml() -> None:
    s = of({"HOTSHELF_ROOTS": "[/a, /b]", "HOTSHELF_SOCKET_GIDS": "[1, 2]", "HOTSHELF_SAFETY__ALLOW_PICKLE": "true"}).settings
    assert (s.roots, s.socket_gids, s.safety.allow_pickle) == (["/a", "/b"], [1, 2], True)


@pytest.mark.parametrize(
    ("text", "size"), [("180GiB", 180 << 30), ("2 GB", 2 * 10**9), ("1.5MiB", 3 << 19), ("1000", 1_000), ("0.5k", 500)]
)
def test_sizes_are_written_as_people_write_them(text: str, size: int) -> None:
    assert of({"HOTSHELF_BUDGET": text}).settings.budget == size


def test_a_budget_may_be_a_share() -> None:
    assert of({"HOTSHELF_BUDGET": "12.5%"}).settings.budget == "12.5%"
    refusal({"HOTSHELF_BUDGET": "120%"})


# ---- the seed's variables


def test_the_seed_variables_make_the_b2_origin_the_home_of_bare_names() -> None:
    env = {"B2_BUCKET": "weights", "B2_REGION": "us-east-005", "B2_KEY_ID": "k1", "B2_SECRET_KEY": SECRET,
           "PIPELINE_STORE": "/shelf2", "HF_TOKEN": "hf_x"}  # fmt: skip
    s = of(env).settings
    origin = s.origins["b2"]
    assert (s.store, s.default_bucket, origin.buckets) == ("/shelf2", "weights", ["weights"])
    assert (origin.endpoint_url, origin.region) == ("https://s3.us-east-005.backblazeb2.com", "us-east-005")
    assert origin.access_key_id == "k1"
    assert origin.secret_access_key is not None
    assert origin.secret_access_key.get_secret_value() == SECRET
    assert s.hf.token is not None


def test_a_bucket_without_a_region_is_refused() -> None:
    assert "B2_REGION" in refusal({"B2_BUCKET": "weights"}).message


def test_an_endpoint_variable_takes_the_seed_elsewhere() -> None:
    s = of({"B2_BUCKET": "weights", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9000"}).settings
    assert s.origins["b2"].endpoint_url == "http://127.0.0.1:9000"


def test_the_file_gives_what_the_seed_does_not_and_ours_beat_the_seed_s(file: pathlib.Path) -> None:
    env = {"PIPELINE_STORE": "/seed", "HOTSHELF_STORE": "/ours", "B2_BUCKET": "w", "B2_REGION": "r"}
    s = of(env, config=written(file, {"store": "/file", "origins": {"b2": {"max_connections": 3}}})).settings
    assert (s.store, s.origins["b2"].max_connections, s.origins["b2"].buckets) == ("/ours", 3, ["w"])


def test_credentials_of_the_seed_go_to_b2_s_endpoints_only(file: pathlib.Path) -> None:
    origins = {"b2": {"endpoint_url": "https://s3.eu.backblazeb2.com"}, "other": {"endpoint_url": "http://weed:8333"}}
    s = of({"B2_KEY_ID": "k", "B2_SECRET_KEY": SECRET}, config=written(file, {"origins": origins})).settings
    assert s.origins["b2"].access_key_id == "k"
    assert s.origins["other"].access_key_id is None


def test_an_endpoint_that_only_looks_like_b2_s_gets_no_credentials(file: pathlib.Path) -> None:
    for trap in ("https://evil.example/.backblazeb2.com", "https://s3.backblazeb2.com.evil.example"):
        config = written(file, {"origins": {"b2": {"endpoint_url": trap}}})
        s = of({"B2_KEY_ID": "k", "B2_SECRET_KEY": SECRET}, config=config).settings
        assert s.origins["b2"].secret_access_key is None


# ---- secrets


@pytest.mark.parametrize(
    "variable",
    ["B2_SECRET_KEY_FILE", "HF_TOKEN_FILE", "HOTSHELF_HF_TOKEN_FILE", "HOTSHELF_ORIGINS__B2__SECRET_ACCESS_KEY_FILE"],
)
def test_a_secret_may_come_from_a_file(tmp_path: pathlib.Path, variable: str) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    env = {"B2_BUCKET": "w", "B2_REGION": "r", variable: str(tmp_path / "secret")}
    assert of(env).settings.secrets() == {SECRET}


def test_a_secret_s_file_that_cannot_be_read_is_named(tmp_path: pathlib.Path) -> None:
    assert "/none/here" in refusal({"HF_TOKEN_FILE": "/none/here"}).message
    missing = {"HOTSHELF_ORIGINS__B2__SECRET_ACCESS_KEY_FILE": str(tmp_path / "none")}
    assert "secret_access_key_file" in refusal(missing).message
    assert "Secret" in refusal(missing).hint


def test_the_hub_s_token_is_the_highest_layer_s_whether_given_or_in_a_file(file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "token").write_text("hf_of_the_file\n")
    in_a_file, given = str(tmp_path / "token"), "hf_given"
    for env, below, expected in (
        ({}, {"hf_token_file": in_a_file}, "hf_of_the_file"),
        ({"HF_TOKEN": given}, {"hf": {"token_file": in_a_file}}, given),
        ({}, {"hf": {"token": given}}, given),
        ({"HOTSHELF_HF__TOKEN_FILE": in_a_file}, {"hf_token": given}, "hf_of_the_file"),
        ({"HOTSHELF_HF__TOKEN": given}, {"hf": {"token_file": in_a_file}}, given),
        ({"HF_TOKEN_FILE": in_a_file}, {"hf_token": given}, "hf_of_the_file"),
        ({"HF_TOKEN": "hf_seed", "HOTSHELF_HF_TOKEN_FILE": in_a_file}, {}, "hf_of_the_file"),
        ({"HF_TOKEN_FILE": in_a_file, "HOTSHELF_HF_TOKEN": given}, {}, given),
    ):
        settings = of(env, config=written(file, below)).settings
        token = hub_token(settings.hf)
        assert token is not None
        assert settings.secrets() == {token.get_secret_value()} == {expected}


@pytest.mark.parametrize("token", [f"{SECRET}\r\nX-Header: x", f"{SECRET}ä"])
def test_a_token_that_is_no_token_is_refused_without_being_repeated(token: str) -> None:
    assert "hf.token" in refusal({"HF_TOKEN": token}).message


def test_a_token_s_file_is_read_as_it_is_now(tmp_path: pathlib.Path) -> None:
    (tmp_path / "token").write_text("hf_old")
    settings = of({"HF_TOKEN_FILE": str(tmp_path / "token")}).settings
    (tmp_path / "token").write_text("hf_new")
    assert (token := hub_token(settings.hf)) is not None
    assert token.get_secret_value() == "hf_new"


def test_the_hub_s_endpoint_is_an_address_without_credentials(file: pathlib.Path) -> None:
    assert of({"HF_ENDPOINT": "http://mirror:8080/hub/"}).settings.hf.endpoint == "http://mirror:8080/hub"
    for wrong in ("mirror", "ftp://mirror", f"https://u:{SECRET}@mirror", "https://mirror?x", "https://mirror:x", "https:///x"):
        assert "hf.endpoint" in refusal(config=written(file, {"hf": {"endpoint": wrong}})).message


@pytest.mark.parametrize(
    ("env", "cache", "variable"),
    [
        ({"HF_HOME": "/h", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/c/"}, "/c", "HF_HUB_CACHE"),
        ({"HF_HOME": "/h", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": ""}, "/old", "HUGGINGFACE_HUB_CACHE"),
        ({"HF_HOME": "/h"}, "/h/hub", "HF_HOME"),
        ({"HF_HOME": "~/h"}, os.path.expanduser("~/h/hub"), "HF_HOME"),
        ({"HF_HOME": "h"}, os.path.abspath("h/hub"), "HF_HOME"),
    ],
)
def test_the_hub_s_cache_is_where_its_library_would_look(
    file: pathlib.Path, env: dict[str, str], cache: str, variable: str
) -> None:
    loaded = of(env, config=written(file, {"hf": {"caches": ["/of/the/file"]}}))
    assert loaded.settings.hf.caches == [cache]
    assert row(loaded, "hf.caches")[1] == f"environment {variable}"
    assert of({**env, "HOTSHELF_HF__CACHES": "[/a, /b]"}).settings.hf.caches == ["/a", "/b"]


def test_there_is_no_cache_that_nobody_names_and_none_without_an_absolute_path(file: pathlib.Path) -> None:
    assert of({"HOME": "/home/somebody", "HF_HOME": ""}).settings.hf.caches == []
    for wrong in ("hub", "~/hub", ""):
        assert "hf.caches" in refusal(config=written(file, {"hf": {"caches": [wrong]}})).message


@pytest.mark.parametrize(
    "secret", ["@at-sign", "%percent", "`tick", "[bracket", "{brace", "a: b", "true", "null", "0123", "1e5", "*x", "'q"]
)
def test_a_secret_in_the_environment_is_text_whatever_it_looks_like(secret: str) -> None:
    env = {"HOTSHELF_ORIGINS__B2__SECRET_ACCESS_KEY": secret, "HOTSHELF_HF_TOKEN": secret}
    settings = of(env).settings
    assert settings.hf.token is not None
    assert settings.hf.token.get_secret_value() == secret
    assert settings.secrets() == {secret}


@pytest.mark.parametrize(
    "mirror",
    [
        "cdn.example.com",
        "ftp://cdn",
        "https://",
        "https://cdn/{bucket}",
        "https://cdn/{key}/{name}",
        "https://cdn?token=x",
        "https://cdn/{key}?token=x",
        "https://cdn#x",
    ],
)
def test_a_mirror_is_an_address_below_which_keys_lie_or_that_has_one_in_it(mirror: str) -> None:
    assert "mirrors" in refusal(origins={"b2": {"mirrors": [mirror]}}).message
    good = ["https://cdn", "http://weed:8333/s3", "https://cdn/file/{bucket}/{key}", "https://{bucket}.cdn/{key}"]
    assert of(origins={"b2": {"mirrors": good}}).settings.origins["b2"].mirrors == good


def test_secrets_are_masked_wherever_settings_are_shown(file: pathlib.Path) -> None:
    origin = {"access_key_id": "key-id", "secret_access_key": SECRET, "session_token": SECRET}
    loaded = of({"HF_TOKEN": SECRET}, config=written(file, {"origins": {"b2": origin}}))
    shown = "\n".join(f"{key} {value} {where}" for key, value, where in loaded.rows())
    assert SECRET not in shown + repr(loaded.settings) + str(loaded.settings) + loaded.settings.model_dump_json()
    assert "key-id" in shown
    assert row(loaded, "origins.b2.secret_access_key")[0] == "********"
    assert loaded.settings.secrets() == {SECRET}


def test_a_secret_of_the_wrong_type_is_refused_without_being_repeated(file: pathlib.Path) -> None:
    for value in ([SECRET], {"a": SECRET}):
        refusal(config=written(file, {"origins": {"b2": {"secret_access_key": value}}}))


def test_credentials_in_an_endpoint_are_refused_without_being_repeated(file: pathlib.Path) -> None:
    url = f"https://user:{SECRET}@s3.example.com"
    for origin in ({"endpoint_url": url}, {"mirrors": [url]}):
        assert "credentials" in refusal(config=written(file, {"origins": {"b2": origin}})).message


# ---- Google Cloud Storage


def test_the_emulator_s_variable_leads_there_unsigned_and_is_shown_to_do_so(file: pathlib.Path) -> None:
    for given, meant in (("gcs:4443", "http://gcs:4443"), ("https://gcs", "https://gcs")):
        loaded = of({"STORAGE_EMULATOR_HOST": given}, config=written(file, {"gcs": {"project": "p"}}))
        gcs = loaded.settings.gcs
        assert (gcs.endpoint_url, gcs.unsigned, gcs.project) == (meant, True, "p")
        assert ("gcs.endpoint_url", meant, "environment STORAGE_EMULATOR_HOST") in loaded.rows()
        assert ("gcs.project", "p", f"file {file}") in loaded.rows()


def test_settings_of_google_s_come_from_the_environment_too() -> None:
    env = {"HOTSHELF_GCS__SERVICE_ACCOUNT_FILE": "/etc/gcs.json", "HOTSHELF_GCS__MAX_CONNECTIONS": "3"}
    settings = of(env).settings
    assert settings.gcs.service_account_file == "/etc/gcs.json"
    assert (settings.connections_of("gcs"), settings.connections_of("b2")) == (3, 16)


def test_wrong_settings_of_google_s_are_named_and_not_repeated(file: pathlib.Path) -> None:
    url = f"https://user:{SECRET}@storage.example.com"
    assert "service_account_file" in refusal(config=written(file, {"gcs": {"endpoint_url": url}})).message
    assert "gcs.endpoint_url" in refusal(config=written(file, {"gcs": {"endpoint_url": "https://a:b"}})).message
    assert "service_account_file" in refusal(config=written(file, {"gcs": {"service_acount_file": "/x"}})).hint
    assert "gcs.max_connections" in refusal(config=written(file, {"gcs": {"max_connections": 0}})).message


# ---- signatures


@pytest.mark.parametrize(("text", "meant"), [("off", "off"), ("'off'", "off"), ("required", "required")])
def test_verify_is_off_or_required_also_where_yaml_reads_off_as_false(file: pathlib.Path, text: str, meant: str) -> None:
    config = written(file, f"origins: {{b2: {{verify: {text}, keys: [/etc/keys/a.pub]}}}}")
    assert of(config=config).settings.origins["b2"].verify == meant
    assert of({"HOTSHELF_ORIGINS__B2__VERIFY": "off"}, config=config).settings.origins["b2"].verify == "off"


def test_verify_is_off_unless_something_else_is_said(file: pathlib.Path) -> None:
    assert of(config=written(file, {"origins": {"b2": {}}})).settings.origins["b2"].verify == "off"


def test_signatures_cannot_be_required_without_a_key(file: pathlib.Path) -> None:
    error = refusal(config=written(file, {"origins": {"b2": {"verify": "required"}}}))
    assert "origins.b2.keys" in error.message
    assert "verify" in error.message


def test_the_password_of_a_key_is_no_setting_of_the_daemon(tmp_path: pathlib.Path) -> None:
    (tmp_path / "password").write_text(f"{SECRET}\n")
    for env in ({"HOTSHELF_SIGN_PASSWORD": SECRET}, {"HOTSHELF_SIGN_PASSWORD_FILE": str(tmp_path / "password")}):
        assert of(env).settings == of().settings
        assert sign_password(env) == SECRET
    assert sign_password({}) is None


# ---- what is refused


@pytest.mark.parametrize(
    ("body", "key", "near"),
    [
        ({"bugdet": "90%"}, "bugdet", "budget"),
        ({"fetch": {"conections": 3}}, "fetch.conections", "connections"),
        ({"origins": {"b2": {"endpoint": "http://x"}}}, "origins.b2.endpoint", "endpoint_url"),
        ({"models": {"sdxl": {"source": "s3://b/m", "pinned": True}}}, "models.sdxl.pinned", "pin"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(file: pathlib.Path, body: object, key: str, near: str) -> None:
    error = refusal(config=written(file, body))
    assert key in error.message
    assert str(file) in error.message
    assert f"'{near}'" in error.hint


def test_an_unknown_variable_is_refused_with_the_nearest_known_one() -> None:
    error = refusal({"HOTSHELF_BUGDET": "1"})
    assert "HOTSHELF_BUGDET" in error.message
    assert "HOTSHELF_BUDGET" in error.hint


def test_what_kubernetes_injects_for_a_service_of_our_name_is_no_setting() -> None:
    env = {"HOTSHELF_SERVICE_HOST": "10.0.0.1", "HOTSHELF_SERVICE_PORT": "80", "HOTSHELF_SERVICE_PORT_HTTP": "80",
           "HOTSHELF_PORT": "tcp://10.0.0.1:80", "HOTSHELF_PORT_80_TCP": "x", "HOTSHELF_PORT_80_TCP_ADDR": "10.0.0.1",
           "HOTSHELF_METRICS_SERVICE_HOST": "10.0.0.1", "HOTSHELF_METRICS_PORT_9464_TCP_PROTO": "tcp"}  # fmt: skip
    assert of(env).settings == of().settings


def test_the_client_s_own_variables_are_no_settings() -> None:
    assert of({"HOTSHELF_AUTOSTART": "1", "HOTSHELF_BUNDLE_NAMESPACE": "x"}).settings == of().settings


def test_a_socket_path_of_108_bytes_is_refused_and_one_of_107_is_not() -> None:
    assert len(of(socket="/" + "s" * 106).settings.socket) == 107
    error = refusal(socket="/" + "s" * 107)
    assert "107" in error.message
    assert "socket" in error.message
    refusal(socket="/" + "ü" * 54)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("store", "relative/path"),
        ("listen", "9464"),
        ("socket_mode", "rw"),
        ("lease_ttl_s", -1),
        ("lease_ttl_s", "soon"),
        ("budget", "lots"),
        ("budget", -5),
        ("log_level", "loud"),
        ("models", {"x": {"source": "s3://b/../c"}}),
        ("models", {"x": "s3://b/m"}),
        ("origins", {"x": {"endpoint_url": "ftp://x"}}),
        ("origins", {"x": {"addressing_style": "sideways"}}),
        ("origins", {"x": {"verify": True, "keys": ["/a.pub"]}}),
        ("origins", {"x": {"verify": "always", "keys": ["/a.pub"]}}),
        ("origins", {"x": {"keys": "/a.pub"}}),
        ("origins", None),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_the_name_of_its_key(file: pathlib.Path, key: str, value: object) -> None:
    error = refusal(config=written(file, {key: value}))
    assert key in error.message
    assert str(file) in error.message


@pytest.mark.parametrize("body", ["- a\n- b\n", "just text", "a: b: c", "1: 2\n", "\x00", "&a [*a", "a: 2026-05-99"])
def test_a_file_that_is_no_mapping_is_refused(file: pathlib.Path, body: str) -> None:
    assert str(file) in refusal(config=written(file, body)).message


def test_a_file_that_is_not_there_is_refused() -> None:
    assert "/none/here.yaml" in refusal(config="/none/here.yaml").message


@pytest.mark.parametrize("text", ["[/a", "9" * 5_000, "2026-05-99", "[" * 5_000])
def test_yaml_in_a_variable_that_is_none_is_refused_by_the_variable_s_name(text: str) -> None:
    assert "HOTSHELF_ROOTS" in refusal({"HOTSHELF_ROOTS": text}).message


@pytest.mark.parametrize("size", ["9" * 400 + "GiB", "9999999999PiB", str(1 << 61)])
def test_a_size_that_no_disk_has_is_refused(file: pathlib.Path, size: str) -> None:
    assert "budget" in refusal(config=written(file, {"budget": size})).message


# ---- files that are no configuration


@pytest.mark.parametrize(
    "text",
    [
        f"origins:\n  o:\n    secret_access_key: {SECRET}: x\n",
        f"origins:\n  o:\n    secret_access_key: '{SECRET}\n",
        f"origins:\n  o: {{secret_access_key: {SECRET}\nmodels: x\n",
        f"origins:\n  o:\n    secret_access_key: *{SECRET}\n",
        f"origins:\n  o:\n    secret_access_key: !{SECRET} x\n",
        f"origins:\n  o:\n    secret_access_key: @{SECRET}\n",
        f"origins:\n  o:\n    secret_access_key: !{SECRET}! x\n",
    ],
)
def test_what_is_not_yaml_is_placed_and_never_repeated(file: pathlib.Path, text: str) -> None:
    said = str(refusal(config=written(file, text)))
    assert f"{file} is not YAML: line " in said
    assert SECRET not in said


def test_the_rest_of_a_secret_that_has_a_comma_is_not_named_as_a_key(file: pathlib.Path) -> None:
    said = str(refusal(config=written(file, f"origins: {{o: {{secret_access_key: a,{SECRET}}}}}\n")))
    assert "'origins.o' has an unknown setting" in said
    assert SECRET not in said


def test_a_value_that_contains_itself_is_refused(file: pathlib.Path) -> None:
    assert "contains itself" in str(refusal(config=written(file, "models: &a {b: *a}\n")))


def test_a_path_that_can_be_none_is_refused(file: pathlib.Path) -> None:
    text = 'origins: {o: {buckets: [b], secret_access_key_file: "/a\\0b"}}\n'
    assert "origins.o.secret_access_key_file" in str(refusal(config=written(file, text)))
