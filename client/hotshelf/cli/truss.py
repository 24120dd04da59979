"""`import-truss`: a Truss's `config.yaml` and its credential files as the configuration of hotshelfd."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import click

from hotshelf.adapters.truss import read_config
from hotshelf.cli.output import Output
from hotshelf.cli.verb import needs_daemon, verb
from hotshelf_shared.truss import ModelCache

ORIGIN = "truss"
S3_FILE, GCS_FILE = "s3_credentials.json", "service_account.json"
#: Where Truss mounts a deployment's secrets, while it builds and while it runs.
SECRETS = ("/etc/secrets", "/secrets")
#: What else of a Truss's configuration brings files, and is not read here.
_NOT_READ = ("weights", "external_data")
_POLICY = (
    "the key needs no more than s3:ListBucket on the bucket and s3:GetObject on what is in it",
    "in a worker, /app/model_cache is a link to STORE/model_cache",
)


@verb("import-truss", example="hotshelf import-truss ./config.yaml > /etc/hotshelf/config.yaml")
@click.argument("config", metavar="FILE", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--data", metavar="DIR", help="Where the Truss's credential files are; else data_dir of FILE, else data/ beside it."
)
def import_truss(out: Output, *, config: str, data: str | None) -> None:
    """Print the configuration of hotshelfd that caches what a Truss's config.yaml does. Secrets stay in their files."""
    try:
        import yaml

        from hotshelf_daemon.config import s3_credentials
        from hotshelf_daemon.origin.gcs_key import ServiceAccountKey
    except ModuleNotFoundError as missing:
        raise needs_daemon(missing) from missing
    truss = read_config(config)
    cache = ModelCache.of(truss)
    folder = os.path.abspath(data if data is not None else os.path.join(os.path.dirname(config), _data_dir(truss)))
    keys = _files(cache, folder)
    if "s3" in keys:
        s3_credentials(keys["s3"], S3_FILE)
    if "gs" in keys:
        ServiceAccountKey.read(keys["gs"])
    body = {"model_cache": [dict(entry) for entry in cache.given], **_origins(cache, keys)}
    notes = [*cache.warnings, *_notes(truss, cache, keys, folder)]
    text = yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=120).splitlines()
    out.result({"config": body, "warnings": notes}, human=[*_comments(config, notes), *text], quiet=text)


def _data_dir(truss: Mapping[str, Any]) -> str:
    named = truss.get("data_dir")
    return named if isinstance(named, str) and named else "data"


def _files(cache: ModelCache, folder: str) -> dict[str, str]:
    """The credential files that are there, by the kind of source that they are for."""
    tokens = [one.token_secret for one in cache.entries if one.source.kind == "hf"]
    names = [name for token in tokens for name in (token, token.replace("_", "-"))]  # Truss's image builder has hyphens
    secrets = [f"{where}/{name}" for name in names for where in (*SECRETS, folder)]
    choices = {"s3": [f"{folder}/{S3_FILE}"], "gs": [f"{folder}/{GCS_FILE}"], "hf": secrets}
    kinds = {one.source.kind for one in cache.entries}
    found = {kind: next(filter(os.path.isfile, paths), None) for kind, paths in choices.items() if kind in kinds}
    return {kind: path for kind, path in found.items() if path is not None}


def _origins(cache: ModelCache, keys: Mapping[str, str]) -> dict[str, Any]:
    """The one place that knows how our settings name credentials. Without a file buckets are read unsigned, as Truss does."""
    body: dict[str, Any] = {}
    if buckets := sorted({one.source.authority for one in cache.entries if one.source.kind == "s3"}):
        account: dict[str, Any] = {"credentials_file": keys["s3"]} if "s3" in keys else {"unsigned": True}
        body["origins"] = {ORIGIN: {"buckets": buckets, **account}}
    if any(one.source.kind == "gs" for one in cache.entries):
        body["gcs"] = {"service_account_file": keys["gs"]} if "gs" in keys else {"unsigned": True}
    if "hf" in keys:
        body["hf"] = {"token_file": keys["hf"]}
    return body


def _notes(truss: Mapping[str, Any], cache: ModelCache, keys: Mapping[str, str], folder: str) -> Iterable[str]:
    kinds = {one.source.kind for one in cache.entries}
    if not cache.entries:
        yield "it caches nothing: it has no model_cache"
    for kind, file in (("s3", S3_FILE), ("gs", GCS_FILE)):
        if kind in kinds and kind not in keys:
            yield f"there is no {folder}/{file}: buckets are read as anybody may"
    secrets = sorted({one.token_secret for one in cache.entries if one.source.kind == "hf"})
    if secrets and "hf" not in keys:
        yield f"for gated repositories set HF_TOKEN_FILE to where the secret {secrets[0]} is mounted"
    if len(secrets) > 1:
        yield f"one token is read for all repositories, and {len(secrets)} are named: {', '.join(secrets)}"
    for key in _NOT_READ:
        if truss.get(key):
            yield f"`{key}:` is not read: only `model_cache:` is"


def _comments(config: str, notes: Iterable[str]) -> list[str]:
    """What came from a file stands on one line, whatever is in it."""
    lines = [f"imported from {config}", *notes, *_POLICY]
    return ["# " + "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) for line in lines]


VERBS = (import_truss,)
