"""Where settings come from: flag > environment > YAML file > default, remembering which one won for each key.

The sole reader of the environment. Plain pydantic with our own layering, since `hotshelf config show` must say where
every value came from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, SecretStr, ValidationError
from yaml.parser import ParserError
from yaml.scanner import ScannerError

from hotshelf_daemon.config.credentials import read_secret, renewed, with_file
from hotshelf_daemon.config.hub import HubSettings, cache_of
from hotshelf_daemon.config.loaded import Loaded
from hotshelf_daemon.config.models import take_model_cache
from hotshelf_daemon.config.settings import OriginSettings, Settings
from hotshelf_shared.errors import BadConfiguration
from hotshelf_shared.wire import nearest

PREFIX = "HOTSHELF_"
DEFAULT_CONFIG = "/etc/hotshelf/config.yaml"
#: Ours, but the client's or the launcher's: not settings of the daemon.
CLIENT_VARIABLES = frozenset(
    f"HOTSHELF_{name}"
    for name in (
        "CONFIG", "AUTOSTART", "BUNDLE_NAMESPACE", "LAUNCH_LOG", "OUTPUT_DIR", "SIGN_PASSWORD", "SIGN_PASSWORD_FILE",
    )
)  # fmt: skip
#: What Kubernetes injects for a Service that happens to be called hotshelf.
_SERVICE_LINK = re.compile(r"HOTSHELF_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP)\w*)?)\Z")
#: What `hf.token` and `hf.token_file` are called as well.
_ALIASES = {"hf_token": "token", "hf_token_file": "token_file"}
#: What PyYAML repeats of a line.
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
#: What PyYAML raises; numbers of thousands of digits, the 99th of May and deep nesting are no YAMLError to it.
_NOT_YAML = (yaml.YAMLError, ValueError, OverflowError, RecursionError)
_TEXT = frozenset({str, SecretStr, type(None), str | None, SecretStr | None})
_SECRET_FIELDS = ("access_key_id", "secret_access_key", "session_token")


def load(
    flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, *, text: str | None = None
) -> Loaded:
    """Settings from all four layers. `flags` maps dotted keys (and ``config``) to values, None where not given; `text` is what
    the file says, if it is not to be read.

    Raises BadConfiguration naming the key, the layer it came from and, for an unknown key, the nearest known one.
    """
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    env = os.environ if environ is None else environ
    path = given.pop("config", None) or env.get("HOTSHELF_CONFIG") or (_default_path() if text is None else DEFAULT_CONFIG)
    merged: dict[str, Any] = {}
    where: dict[str, str] = {}
    try:
        text = _read(path) if path is not None and text is None else text
        for layer, values in (*_file_layer(path, text or ""), *_seed_layer(env), *_environment_layer(env)):
            _lay(merged, where, _with_one_token(values), layer)
        for key, value in given.items():
            _lay(merged, where, _nested(key.split("."), value), f"flag --{key.replace('_', '-')}")
        cache = take_model_cache(merged, where)
        settings = Settings.model_validate(_with_credentials(merged, env))
    except ValidationError as error:
        raise _explain(error, where) from None
    except RecursionError:
        raise BadConfiguration("a value of the configuration contains itself", hint="Look for an alias (*name).") from None
    return Loaded(settings, where, path, text, cache.warnings)


def _default_path() -> str | None:
    return DEFAULT_CONFIG if os.path.exists(DEFAULT_CONFIG) else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"cannot read the configuration {path}: {error}", hint="Check --config.") from error


def _file_layer(path: str | None, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        values = yaml.safe_load(text)
    except _NOT_YAML as error:
        raise BadConfiguration(f"{path} is not YAML: {_told_of(error)}") from None
    if values is None:
        return
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise BadConfiguration(f"{path} is not a YAML mapping")
    yield f"file {path}", values


def _told_of(error: Exception) -> str:
    """Where and what, without the line itself, which its own message has: a secret may stand there."""
    mark = getattr(error, "problem_mark", None)
    problem = _QUOTED.sub("…", error.problem or "") if isinstance(error, ScannerError | ParserError) else None
    place = f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else "a value"
    return f"{place}: {problem or 'it cannot be read'}"


def _seed_layer(env: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The variables of the seed README: a B2 bucket becomes the origin ``b2`` and the home of bare names."""
    if store := env.get("PIPELINE_STORE"):
        yield "environment PIPELINE_STORE", {"store": store}
    if emulator := env.get("STORAGE_EMULATOR_HOST"):  # as google's own tools read it
        address = emulator if "://" in emulator else f"http://{emulator}"
        yield "environment STORAGE_EMULATOR_HOST", {"gcs": {"endpoint_url": address, "unsigned": True}}
    yield from _hub_layer(env)
    if not (bucket := env.get("B2_BUCKET")):
        return
    region = env.get("B2_REGION")
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")
    if not endpoint and not region:
        raise BadConfiguration("B2_BUCKET is set and B2_REGION is not", hint="Set B2_REGION, for example us-east-005.")
    origin: dict[str, Any] = {"endpoint_url": endpoint or b2_endpoint(str(region)), "buckets": [bucket]}
    if region:
        origin["region"] = region
    for field, variable in (("access_key_id", "B2_KEY_ID"), ("secret_access_key", "B2_SECRET_KEY")):
        if value := _value_or_file(env, variable):
            origin[field] = value
    yield "environment B2_*", {"default_bucket": bucket, "origins": {"b2": origin}}


def _hub_layer(env: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for variable, key in (("HF_ENDPOINT", "endpoint"), ("HF_TOKEN", "token"), ("HF_TOKEN_FILE", "token_file")):
        if value := env.get(variable):
            yield f"environment {variable}", {"hf": {key: value}}
    if cache := cache_of(env):
        yield f"environment {cache[0]}", {"hf": {"caches": [cache[1]]}}


def _is_b2(endpoint: object) -> bool:
    """By its host: credentials must not follow a name that only looks like B2's."""
    try:
        return (urlsplit(str(endpoint)).hostname or "").endswith(".backblazeb2.com")
    except ValueError:
        return False


def b2_endpoint(region: str) -> str:
    return f"https://s3.{region}.backblazeb2.com"


def _environment_layer(env: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for variable, text in sorted(env.items()):
        if not variable.startswith(PREFIX) or variable in CLIENT_VARIABLES or _SERVICE_LINK.match(variable):
            continue
        path = variable.removeprefix(PREFIX).lower().split("__")
        path = ["hf", _ALIASES[path[0]]] if path[0] in _ALIASES else path
        if path[0] not in Settings.model_fields:
            hint = nearest(variable, (PREFIX + name.upper() for name in Settings.model_fields))
            raise BadConfiguration(f"the environment has an unknown setting {variable}", hint=hint)
        yield f"environment {variable}", _nested(path, _typed(path, variable, text))


def _typed(path: list[str], variable: str, text: str) -> Any:
    """A variable's text as its field wants it: lists, mappings and numbers are YAML, text stays text."""
    field = _model_above(path).model_fields.get(path[-1])
    if field is not None and {*get_args(field.annotation)} | {field.annotation} <= _TEXT:
        return text
    try:
        return yaml.safe_load(text)
    except _NOT_YAML:  # its message would repeat the value
        raise BadConfiguration(f"{variable} is not YAML", hint="Quote it as in a YAML file.") from None


def _with_one_token(values: dict[str, Any]) -> dict[str, Any]:
    """A layer that says what the hub's token is, or in which file, takes back what those below have said of either."""
    hub, rest = values.get("hf", {}), {key: value for key, value in values.items() if key not in _ALIASES}
    if not isinstance(hub, dict):
        return values
    hub = {**{_ALIASES[key]: values[key] for key in _ALIASES if key in values}, **hub}
    if "token" in hub or "token_file" in hub:
        hub = {"token": None, "token_file": None, **hub}
    return {**rest, "hf": hub} if hub else rest


def _with_credentials(values: dict[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    """The hub's token and each origin's credentials resolved: their own, or out of their ``…_file``."""
    if isinstance(hub := values.get("hf"), dict) and (file := hub.get("token_file")):
        given = {"token_file": None} if hub.get("token") else {"token": read_secret(str(file), "hf.token_file")}
        values = {**values, "hf": {**hub, **given}}
    if isinstance(mirror := values.get("hub_mirror"), dict) and (file := mirror.get("token_file")) and not mirror.get("token"):
        values = {**values, "hub_mirror": {**mirror, "token": read_secret(str(file), "hub_mirror.token_file")}}
    return _with_origins_credentials(values, env)


def _with_origins_credentials(values: dict[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    """Each origin's: its own, its ``…_file``, or B2_* when the endpoint is B2's."""
    origins = values.get("origins")
    if not isinstance(origins, dict):
        return values
    resolved = {}
    for name, given in origins.items():
        origin = with_file(given, name) if isinstance(given, dict) else given
        if isinstance(origin, dict):
            for field in _SECRET_FIELDS:
                if (file := origin.get(f"{field}_file")) and not origin.get(field):
                    origin[field] = read_secret(str(file), f"origins.{name}.{field}_file")
            if _is_b2(origin.get("endpoint_url")) and not origin.get("access_key_id"):
                for field, variable in (("access_key_id", "B2_KEY_ID"), ("secret_access_key", "B2_SECRET_KEY")):
                    if value := _value_or_file(env, variable):
                        origin[field] = value
        resolved[name] = origin
    return {**values, "origins": resolved}


def reread(origin: OriginSettings) -> OriginSettings:
    """The origin with what its ``…_file`` settings hold by now: tokens expire and are written anew."""
    fresh = renewed(origin.credentials_file)
    for field in _SECRET_FIELDS:
        if file := getattr(origin, f"{field}_file"):
            text = read_secret(file, f"{field}_file")
            fresh[field] = text if field == "access_key_id" else SecretStr(text)
    return origin.model_copy(update=fresh)


def hub_token(hub: HubSettings) -> SecretStr | None:
    """The token, out of its file as that is by now. Raises BadConfiguration when that cannot be read."""
    return hub.token if hub.token_file is None else SecretStr(read_secret(hub.token_file, "hf.token_file"))


def sign_password(environ: Mapping[str, str]) -> str | None:
    """What decrypts the key of `hotshelf push --sign`: HOTSHELF_SIGN_PASSWORD, or in the file ``…_FILE`` names."""
    return _value_or_file(environ, f"{PREFIX}SIGN_PASSWORD")


def _value_or_file(env: Mapping[str, str], variable: str) -> str | None:
    if file := env.get(f"{variable}_FILE"):
        return read_secret(file, f"{variable}_FILE")
    return env.get(variable) or None


def _nested(path: list[str], value: Any) -> dict[str, Any]:
    for part in reversed(path):
        value = {part: value}
    return dict(value)


def _lay(below: dict[str, Any], where: dict[str, str], above: Mapping[str, Any], layer: str, at: str = "") -> None:
    """Merges `above` over `below` in place, key by key, noting the layer of every leaf."""
    for key, value in above.items():
        dotted = f"{at}.{key}".lstrip(".")
        if isinstance(value, dict) and value:
            inner = below.get(key)
            below[key] = dict(inner) if isinstance(inner, dict) else {}
            _lay(below[key], where, value, layer, dotted)
        else:
            below[key] = value
            where[dotted] = layer


def _explain(error: ValidationError, where: Mapping[str, str]) -> BadConfiguration:
    """The first problem as a sentence. Input values are never repeated: one of them may be a secret."""
    first = error.errors(include_input=False, include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        key = ".".join(path)
        hint = nearest(path[-1], known := _known_beside(path))
        if path[0] == "origins" and not get_close_matches(path[-1], known, n=1):  # the rest of a secret with a comma in it
            where_ = ".".join(path[:-1])
            return BadConfiguration(f"{where_!r} has an unknown setting ({_layer_of(where, path)})", hint=hint)
        return BadConfiguration(f"unknown setting {key!r} ({_layer_of(where, path)})", hint=hint)
    names = [part for part in path if not part.startswith(("constrained-", "function-", "int", "str"))]
    message = first["msg"].removeprefix("Value error, ")
    return BadConfiguration(f"the setting {'.'.join(names)!r} {message[:1].lower()}{message[1:]} ({_layer_of(where, names)})")


def _layer_of(where: Mapping[str, str], path: list[str]) -> str:
    for depth in range(len(path), 0, -1):
        dotted = ".".join(path[:depth])
        for key, layer in where.items():
            if key == dotted or key.startswith(dotted + "."):
                return layer
    return "default"


def _known_beside(path: list[str]) -> list[str]:
    return list(_model_above(path).model_fields)


def _model_above(path: list[str]) -> type[BaseModel]:
    """The part of the settings in which the last key of `path` stands."""
    model: Any = Settings
    for part in path[:-1]:
        field = model.model_fields.get(part)
        if field is not None:
            model = next((a for a in (field.annotation, *get_args(field.annotation)) if hasattr(a, "model_fields")), model)
    return model  # type: ignore[no-any-return]  # annotations are not typed
